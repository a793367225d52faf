set -eu
mkdir -p ~/project && cd ~/project
mkdir -p src/shop/alpha0 docs/alpha0 tests node_modules/left
cat > src/shop/price.py <<'EOF'
def total(items):
    """Adds up the prices of a cart."""
    s = 0
    for price, count in items:
        s += price
    return s


def tax(net):
    return round(net * 0.19, 2)
EOF
: > src/shop/__init__.py
for number in $(seq 23); do echo "PART = $number" > src/shop/alpha0/part$number.py; done
for number in $(seq 20); do echo "page $number" > docs/alpha0/p$number.md; done
cat > tests/test_price.py <<'EOF'
import unittest
from shop.price import total


class Price(unittest.TestCase):
    def test_total(self):
        self.assertEqual(total([(2, 3), (5, 1), (1, 4)]), 15)
EOF
printf '{\n  "name": "shop",\n  "version": "1.0.0"\n}\n' > package.json
echo 'module.exports = 1' > node_modules/left/index.js
echo 'PORT=8080' > .env
printf '.env\n.venv\nnode_modules\n__pycache__\n' > .gitignore
# As `pip install --editable .` does: a file with the path of the sources.
python3 -m venv --without-pip .venv
echo "$HOME/project/src" > "$(echo .venv/lib/python3*/site-packages)/__editable__.shop.pth"
git init -q -b main
git config user.name you
git config user.email you@example.org
git add -A
git commit -qm 'a shop'
