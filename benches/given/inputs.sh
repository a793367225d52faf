# What the steps of `steps.rs` take as given, made in $IN: a repository with the files of $TREE and a second branch, an
# archive, two programs to build, packages for pip and npm. $SMALL, $PACKAGES and the like say how much of it.
set -eu
cd "$IN"
export HOME="$IN"

# Two commits, 500 files apart.
git init -q -b main seed
cp -r "$TREE/." seed/
cd seed
git add -A
git commit -qm one
git checkout -qb other
find . -name .git -prune -o -type f -size -20k -print | sort | sed -n 1,500p | while read -r f; do echo changed >> "$f"; done
git commit -qam two
git checkout -q main
find . -name .git -prune -o -type f -print | sort | sed -n "1,${ARCHIVED}p" | tar cf ../archive.tar -T -
cd ..
git clone -q --bare seed bare.git
git -C bare.git repack -adq

mkdir c
for i in $(seq "$SOURCES"); do
    printf '#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include "all.h"\nint f%d(int x){char b[64];snprintf(b,64,"%%d",x);return strlen(b)+%d;}\n' "$i" "$i" > "c/f$i.c"
    echo "int f$i(int x);" >> c/all.h
done
printf '#include <stdio.h>\n#include "all.h"\nint main(void){printf("%%d\\n",f1(1)+f2(22));return 0;}\n' > c/main.c
printf 'O=$(patsubst %%.c,%%.o,$(wildcard *.c))\nprog: $(O)\n\tcc -o $@ $(O)\n%%.o: %%.c all.h\n\tcc -O1 -c -o $@ $<\n' > c/Makefile

# Four crates, each on the shoulders of the one before.
mkdir -p rust/app/src
printf '[workspace]\nmembers=["app","c1","c2","c3"]\nresolver="2"\n' > rust/Cargo.toml
for c in 1 2 3; do
    mkdir -p "rust/c$c/src"
    printf '[package]\nname="c%d"\nversion="0.1.0"\nedition="2021"\n[dependencies]\n' "$c" > "rust/c$c/Cargo.toml"
    if [ "$c" -gt 1 ]; then echo "c$((c - 1)) = { path = \"../c$((c - 1))\" }" >> "rust/c$c/Cargo.toml"; fi
    for i in $(seq "$MODULES"); do
        printf 'use std::collections::BTreeMap;\npub fn f(n: u32) -> BTreeMap<u32, String> { (0..n).map(|i| (i * %d, format!("{i:?}"))).collect() }\n' "$i" > "rust/c$c/src/m$i.rs"
        echo "pub mod m$i;" >> "rust/c$c/src/lib.rs"
    done
done
printf '[package]\nname="app"\nversion="0.1.0"\nedition="2021"\n[dependencies]\nc3 = { path = "../c3" }\n' > rust/app/Cargo.toml
echo 'fn main() { println!("{}", c3::m1::f(3).len() + c3::m2::f(4).len()); }' > rust/app/src/main.rs

# A wheel of many modules, and the part of the standard library that programs import.
python3 - <<'PY'
import base64, hashlib, os, shutil, sysconfig, zipfile
name, modules = "benchwheel-1.0", int(os.environ["WHEEL"])
files = {f"benchwheel/p{n // 50:02}/m{n:04}.py": f"def f{n}(x):\n    return [x + {n}, {{'k': x}}]\n" * 20 for n in range(modules)}
for n in range(0, modules, 50):
    files[f"benchwheel/p{n // 50:02}/__init__.py"] = ""
files["benchwheel/__init__.py"] = ""
files[f"{name}.dist-info/METADATA"] = "Metadata-Version: 2.1\nName: benchwheel\nVersion: 1.0\n"
files[f"{name}.dist-info/WHEEL"] = "Wheel-Version: 1.0\nGenerator: bench\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
digest = lambda text: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
record = "".join(f"{path},sha256={digest(text)},{len(text)}\n" for path, text in files.items())
files[f"{name}.dist-info/RECORD"] = record + f"{name}.dist-info/RECORD,,\n"
with zipfile.ZipFile(f"{name}-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
    for path, text in files.items():
        wheel.writestr(path, text)
lib = sysconfig.get_path("stdlib")
skip = shutil.ignore_patterns("site-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__", "*.so", "*.a", "config-*", "lib-dynload", "ensurepip", "turtledemo", "tkinter")
shutil.copytree(lib, "stdlib", ignore=skip)
PY

if command -v npm >/dev/null; then
    for p in $(seq "$PACKAGES"); do
        mkdir -p "npm/p$p/lib"
        for i in $(seq 200); do echo "exports.n = $i * $p" > "npm/p$p/lib/m$i.js"; done
        echo "{\"name\":\"p$p\",\"version\":\"1.0.0\",\"main\":\"lib/m1.js\"}" > "npm/p$p/package.json"
        (cd "npm/p$p" && npm pack --silent >/dev/null && mv "p$p-1.0.0.tgz" ..)
    done
    # The first install fills npm's own cache, which lies here for all.
    mkdir npm/first
    (cd npm/first && echo '{"name":"app","version":"1.0.0"}' > package.json && npm install --offline --no-audit --no-fund --silent ../*.tgz)
fi
