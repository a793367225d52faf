//! Lists where credentials are: in which variables, and in which files below a home folder.
//!
//! A command in a run could send away everything that it can read. docs/SECURITY.md shows both lists.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The variable whose value allows forging ledgers. No command gets it, and no option changes that.
pub const LEDGER_SECRET: &str = "PF_SESSION_SECRET";

/// Names of variables that hold credentials. `*` matches any text; case does not matter.
const VARIABLES: &[&str] = &[
    "AWS_*",
    "GOOGLE_*",
    "GCP_*",
    "GCLOUD_*",
    "AZURE_*",
    "OCI_*",
    "HF_*",
    "HUGGING_FACE_*",
    "HUGGINGFACE_*",
    "ALIBABA_CLOUD_*",
    "TENCENTCLOUD_*",
    "OP_SESSION_*",
    "TOKEN",
    "*_TOKEN",
    "API_KEY",
    "*_API_KEY",
    "*_API_KEY_*",
    "APIKEY",
    "*_APIKEY",
    "SECRET",
    "SECRET_*",
    "*_SECRET",
    "*_SECRET_*",
    "*_SECRETS",
    "PASSWORD",
    "*_PASSWORD",
    "*_PASSWD",
    "*_PASS",
    "*_PASSPHRASE",
    "*_PRIVATE_KEY",
    "*_ACCESS_KEY",
    "*_ACCESS_KEY_ID",
    "*_ENCRYPTION_KEY",
    "*_SIGNING_KEY",
    "*_MASTER_KEY",
    "*_CREDENTIAL",
    "*_CREDENTIALS",
    "*_PAT",
    "*_CONNECTION_STRING",
    "*_WEBHOOK_URL",
    "SSH_AUTH_SOCK",
    "SSHPASS",
    "GPG_AGENT_INFO",
    "GNOME_KEYRING_CONTROL",
    "KRB5CCNAME",
    "KUBECONFIG",
    "DOCKER_AUTH_CONFIG",
    "NETRC",
    "PGPASSWORD",
    "PGPASSFILE",
    "MYSQL_PWD",
    "BW_SESSION",
    "NPM_CONFIG__AUTH*",
    "SOPS_AGE_KEY*",
];

/// Variables that match the list without holding a credential: folders, and public certificates.
const SETTINGS_ALONE: &[&str] = &["AWS_CA_BUNDLE", "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE"];

/// Files and folders below a home folder that hold credentials.
const KEYS: &[&str] = &[
    ".ssh",
    ".gnupg",
    ".pki",
    ".aws",
    ".azure",
    ".oci",
    ".kube",
    ".boto",
    ".s3cfg",
    ".config/gcloud",
    ".config/doctl",
    ".config/hcloud",
    ".config/rclone",
    ".config/solana",
    ".docker/config.json",
    ".config/containers/auth.json",
    ".netrc",
    "_netrc",
    ".authinfo",
    ".authinfo.gpg",
    ".git-credentials",
    ".config/git/credentials",
    ".config/gh",
    ".config/glab-cli",
    ".config/hub",
    ".pgpass",
    ".my.cnf",
    ".mylogin.cnf",
    ".pypirc",
    ".cargo/credentials",
    ".cargo/credentials.toml",
    ".gem/credentials",
    ".composer/auth.json",
    ".config/composer/auth.json",
    ".terraform.d/credentials.tfrc.json",
    ".vault-token",
    ".huggingface/token",
    ".cache/huggingface/token",
    ".cache/huggingface/stored_tokens",
    ".config/op",
    ".config/sops",
    ".config/1Password",
    ".config/Bitwarden",
    ".config/Bitwarden CLI",
    ".password-store",
    ".local/share/keyrings",
    ".local/share/kwalletd",
    ".gnome2/keyrings",
    ".kde/share/apps/kwallet",
    ".electrum",
    ".ethereum/keystore",
    ".Xauthority",
    ".ICEauthority",
    ".mozilla",
    ".thunderbird",
    ".librewolf",
    ".config/google-chrome",
    ".config/google-chrome-beta",
    ".config/google-chrome-unstable",
    ".config/chromium",
    ".config/BraveSoftware",
    ".config/microsoft-edge",
    ".config/opera",
    ".config/vivaldi",
    "snap/firefox",
    "snap/chromium",
    ".var/app/org.mozilla.firefox",
    ".var/app/org.mozilla.Thunderbird",
    ".var/app/org.chromium.Chromium",
    ".var/app/com.google.Chrome",
    ".var/app/com.brave.Browser",
    ".var/app/com.microsoft.Edge",
];

/// Settings files below a home folder that hold a credential if they contain one of these words.
const SETTINGS: &[(&str, &[&str])] = &[
    (".npmrc", &["_auth", "_password"]),
    (".yarnrc.yml", &["npmAuth"]),
    (".m2/settings.xml", &["<password>", "<passphrase>"]),
    (".gradle/gradle.properties", &["assword", "oken", "ecret"]),
    (".config/pip/pip.conf", &["@"]),
    (".pip/pip.conf", &["@"]),
];

/// Variables that move a part of a home folder elsewhere.
const MOVED: &[(&str, &str)] = &[
    ("XDG_CONFIG_HOME", ".config"),
    ("XDG_DATA_HOME", ".local/share"),
    ("XDG_CACHE_HOME", ".cache"),
    ("CARGO_HOME", ".cargo"),
    ("DOCKER_CONFIG", ".docker"),
    ("GNUPGHOME", ".gnupg"),
    ("AZURE_CONFIG_DIR", ".azure"),
    ("CLOUDSDK_CONFIG", ".config/gcloud"),
    ("PASSWORD_STORE_DIR", ".password-store"),
    ("HF_HOME", ".cache/huggingface"),
];

/// Variables that name files with credentials, separated by colons.
const NAMED: &[&str] = &[
    "GOOGLE_APPLICATION_CREDENTIALS",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CONFIG_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "OCI_CLI_CONFIG_FILE",
    "OCI_CLI_KEY_FILE",
    "HF_TOKEN_PATH",
    "KUBECONFIG",
    "NETRC",
    "PGPASSFILE",
    "REGISTRY_AUTH_FILE",
    "BOTO_CONFIG",
];

/// Whether a variable of this name holds a credential.
pub fn is_credential(name: &OsStr) -> bool {
    let is_meant = |list: &[&str]| list.iter().any(|pattern| matches(pattern, name));
    is_meant(VARIABLES) && !is_meant(SETTINGS_ALONE)
}

/// Whether a name matches a pattern. `*` matches any text; case does not matter.
pub fn matches(pattern: &str, name: &OsStr) -> bool {
    fn rest(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern, name) {
            ([], []) => true,
            ([b'*', after @ ..], _) => (0..=name.len()).any(|taken| rest(after, &name[taken..])),
            ([first, after @ ..], [byte, name @ ..]) => first.eq_ignore_ascii_case(byte) && rest(after, name),
            _ => false,
        }
    }
    rest(pattern.as_bytes(), name.as_bytes())
}

/// Returns the home folders whose credentials a user could read: the user's own and, for root, those of all users in `passwd`.
pub fn homes(uid: u32, passwd: &str, home: Option<PathBuf>) -> Vec<PathBuf> {
    let listed = passwd.lines().filter_map(|line| {
        let mut fields = line.split(':').skip(2);
        let of: u32 = fields.next()?.parse().ok()?;
        let home = (uid == 0 || of == uid).then(|| fields.nth(2).map(PathBuf::from))??;
        // Users of services have a folder of the system as their home, in which they keep no credentials.
        (of == uid || std::fs::metadata(&home).is_ok_and(|metadata| metadata.uid() == of)).then_some(home)
    });
    let mut homes: Vec<PathBuf> = home.into_iter().chain(listed).collect();
    homes.retain(|home| home.is_absolute() && home.parent().is_some());
    homes.sort();
    homes.dedup();
    homes
}

/// Returns the files and folders with credentials in home folders.
///
/// `variable` returns a variable's value. `handed` says whether the command gets a variable, and with it the files that it
/// names. `aliases` returns the other paths of a folder.
pub fn keys(
    homes: &[PathBuf],
    variable: impl Fn(&str) -> Option<OsString>,
    handed: impl Fn(&str) -> bool,
    aliases: impl Fn(&Path) -> Vec<PathBuf>,
) -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> = homes.iter().flat_map(|home| aliases(home)).collect();
    roots.extend(homes.iter().cloned());
    let path_of = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let moved: Vec<(PathBuf, &str)> =
        MOVED.iter().filter_map(|(name, part)| Some((path_of(name)?, *part))).collect();
    // Below each home, and at the place to which a variable moves a part of the home.
    let places = |key: &str| -> Vec<PathBuf> {
        let below = roots.iter().map(|root| root.join(key));
        let instead = moved.iter().filter_map(|(to, part)| {
            let rest = Path::new(key).strip_prefix(part).ok()?;
            Some(if rest.as_os_str().is_empty() { to.clone() } else { to.join(rest) })
        });
        below.chain(instead).collect()
    };
    let mut keys: Vec<PathBuf> = KEYS.iter().flat_map(|key| places(key)).collect();
    for (settings, words) in SETTINGS {
        keys.extend(places(settings).into_iter().filter(|path| holds(path, words)));
    }
    for name in NAMED.iter().filter(|name| !handed(name)) {
        let value = variable(name).unwrap_or_default();
        let paths =
            value.as_bytes().split(|byte| *byte == b':').map(|path| PathBuf::from(OsStr::from_bytes(path)));
        keys.extend(paths.filter(|path| path.is_absolute()));
    }
    // A folder that contains a whole home is not a key, even if a variable names it.
    keys.retain(|key| key.parent().is_some() && !homes.iter().any(|home| home.starts_with(key)));
    keys.retain(|key| key.exists());
    keys.sort();
    keys.dedup();
    keys
}

/// Settings files longer than this, in bytes, are assumed to hold a credential.
const MAX_SETTINGS: u64 = 1 << 20;

fn holds(path: &Path, words: &[&str]) -> bool {
    let Ok(metadata) = std::fs::metadata(path) else { return false };
    if !metadata.is_file() || metadata.len() > MAX_SETTINGS {
        return true;
    }
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    words.iter().any(|word| text.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn credentials_are_recognized_by_their_names() {
        let held = [
            "AWS_ACCESS_KEY_ID",
            "AWS_PROFILE",
            "OPENAI_API_KEY",
            "GITHUB_TOKEN",
            "TOKEN",
            "npm_token",
            "DB_PASSWORD",
            "SSH_AUTH_SOCK",
            "SECRET_KEY_BASE",
            "CLIENT_SECRET",
            "KUBECONFIG",
            "npm_config__authToken",
            "GITHUB_PAT",
            "ARM_CLIENT_SECRET",
            "HUGGING_FACE_HUB_TOKEN",
        ];
        let handed = [
            "PATH",
            "HOME",
            "LANG",
            "TERM",
            "MY_VAR",
            "TOKENIZERS_PARALLELISM",
            "MAX_TOKENS",
            "AWSOME",
            "PASSAGE",
            "COMPASS",
            "PYTHONPATH",
            "KEYMAP",
            "AWS_CA_BUNDLE",
            "SECRETARY",
            "",
        ];
        for (names, is) in [(&held[..], true), (&handed[..], false)] {
            for name in names {
                assert_eq!(is_credential(OsStr::new(name)), is, "{name}");
            }
        }
    }

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, name, is) in [
            ("A*", "A", true),
            ("A*", "abc", true),
            ("*_B", "_B", true),
            ("*_B_*", "A_B_C", true),
            ("*_B_*", "A_B", false),
            ("*", "", true),
            ("", "", true),
            ("A", "AB", false),
        ] {
            assert_eq!(matches(pattern, OsStr::new(name)), is, "{pattern} {name}");
        }
    }

    #[test]
    fn the_lists_are_those_of_the_document() {
        let document = include_str!("../../docs/SECURITY.md");
        let settings = SETTINGS.iter().map(|(path, _)| path);
        let moved = MOVED.iter().map(|(name, _)| name);
        for word in
            VARIABLES.iter().chain(SETTINGS_ALONE).chain(KEYS).chain(settings).chain(moved).chain(NAMED)
        {
            assert!(document.contains(&format!("`{word}`")), "docs/SECURITY.md does not name {word}");
        }
    }

    #[test]
    fn keys_are_found_in_homes_and_where_variables_say() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        for folder in ["me/.ssh", "me/.config/gcloud", "other/.aws", "elsewhere/git", "keys"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        for (file, text) in [
            ("keys/one", ""),
            ("keys/two", ""),
            ("me/.npmrc", "registry=https://r\n"),
            ("other/.npmrc", "//r/:_authToken=1\n"),
            ("elsewhere/git/credentials", ""),
        ] {
            fs::write(at(file), text).unwrap();
        }
        let named = format!("{}:{}", at("keys/one").display(), at("keys/two").display());
        let variable = |name: &str| match name {
            "XDG_CONFIG_HOME" => Some(at("elsewhere").into_os_string()),
            "KUBECONFIG" => Some(named.clone().into()),
            "NETRC" => Some(dir.path().as_os_str().to_owned()),
            _ => None,
        };
        let found = |homes: &[&str], handed: &[&str]| {
            let homes: Vec<PathBuf> = homes.iter().map(|home| at(home)).collect();
            keys(&homes, variable, |name| handed.contains(&name), |_| Vec::new())
                .into_iter()
                .map(|key| key.strip_prefix(dir.path()).unwrap().to_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        let mine = ["elsewhere/git/credentials", "keys/one", "keys/two", "me/.config/gcloud", "me/.ssh"];
        assert_eq!(found(&["me"], &[]), mine);
        assert_eq!(found(&["me"], &["KUBECONFIG"]), [mine[0], mine[3], mine[4]]);
        let all = found(&["me", "other"], &["KUBECONFIG"]);
        assert_eq!(all, [mine[0], mine[3], mine[4], "other/.aws", "other/.npmrc"]);
        let bound = keys(&[at("me")], |_| None, |_| false, |_| vec![at("other")]);
        assert_eq!(bound, [at("me/.config/gcloud"), at("me/.ssh"), at("other/.aws"), at("other/.npmrc")]);
    }

    #[test]
    fn roots_homes_are_those_of_every_user_who_has_one() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path();
        let uid = std::fs::metadata(own).unwrap().uid();
        let passwd = format!(
            "one:x:{uid}:0::{}:/bin/sh\ntwo:x:4711:0::/usr:/bin/sh\nthree:x:4712:0::/:/bin/sh\nbroken\nfour:x:y:0::/a:\n",
            own.display()
        );
        let given = PathBuf::from("/given");
        assert!(homes(0, &passwd, None).contains(&own.to_owned()));
        assert!(!homes(0, &passwd, None).contains(&PathBuf::from("/usr")));
        assert_eq!(homes(4711, &passwd, Some(given.clone())), [PathBuf::from("/given"), "/usr".into()]);
        assert_eq!(homes(4712, &passwd, Some("relative".into())), [] as [PathBuf; 0]);
        assert_eq!(homes(9, &passwd, Some(given.clone())), [given]);
    }
}
