//! Judging a crash pack again, from its own files alone.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::evidence::EvidenceLedger;
use super::{Crashpack, FILES, LEDGER, SCHEMA_VERSION, TRACE, TraceEvent};
use crate::error::{Error, ErrorKind, Result};
use crate::oracle::TransferOracleResult;

/// Largest file of a pack that is read, in bytes.
const MAX_FILE: u64 = 64 << 20;

/// A pack that is whole, and its verdicts.
#[derive(Debug)]
pub struct Replay {
    /// The verdicts, worked out anew.
    pub results: Vec<TransferOracleResult>,
    /// What it says of itself.
    pub ledger: EvidenceLedger,
}

impl Replay {
    /// Whether a violation was found again.
    pub fn reproduces(&self) -> bool {
        self.results.iter().any(TransferOracleResult::has_violations)
    }
}

fn read(dir: &Path, name: &str) -> Result<Vec<u8>> {
    let path = dir.join(name);
    let failed = |e: io::Error| Error::io(e, format!("cannot read {}", path.display()));
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_NOFOLLOW)
        .open(&path)
        .map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(changed(dir, name, "it is no regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(changed(dir, name, "it is larger than any pack's"));
    }
    Ok(bytes)
}

fn changed(dir: &Path, name: &str, why: &str) -> Error {
    Error::new(ErrorKind::Damaged, format!("crash pack {} was changed: {name}: {why}", dir.display()))
        .with_hint("nothing in it can be believed; take a copy that is whole")
}

/// Reads a pack, works out everything in it anew, and refuses it if a byte is another one. With `oracles`, all of these
/// must be among those that judged.
pub fn replay(dir: &Path, oracles: &[String]) -> Result<Replay> {
    if !dir.join(LEDGER).exists() || !dir.join(TRACE).exists() {
        return Err(Error::new(ErrorKind::NotFound, format!("there is no crash pack in {}", dir.display()))
            .with_hint("a pack is a folder with transfer.atp-trace and evidence-ledger.json"));
    }
    let found: Vec<(&str, Vec<u8>)> =
        FILES.iter().map(|name| Ok((*name, read(dir, name)?))).collect::<Result<_>>()?;
    let bytes_of = |name: &str| {
        found.iter().find(|(known, _)| *known == name).map_or(&[][..], |(_, bytes)| bytes.as_slice())
    };
    let trace: Vec<TraceEvent> =
        serde_json::from_slice(bytes_of(TRACE)).map_err(|e| changed(dir, TRACE, &e.to_string()))?;
    let ledger: EvidenceLedger =
        serde_json::from_slice(bytes_of(LEDGER)).map_err(|e| changed(dir, LEDGER, &e.to_string()))?;
    if ledger.schema_version > SCHEMA_VERSION {
        return Err(Error::new(
            ErrorKind::UnsupportedSchema,
            format!("crash pack {} has schema version {}", dir.display(), ledger.schema_version),
        )
        .with_hint("a newer pfimg may read it"));
    }
    let pack = Crashpack {
        trace,
        seeds: ledger.seeds.clone(),
        artifact_paths: ledger.artifacts.iter().skip(FILES.len()).cloned().collect(),
        metadata: ledger.metadata.clone(),
    };
    let made = pack.files()?;
    for (name, bytes) in &found {
        if made.get(name) != Some(bytes) {
            return Err(changed(dir, name, "it is not what the trace and the ledger make"));
        }
    }
    let results = pack.results();
    if let Some(missing) = oracles.iter().find(|name| !results.iter().any(|r| r.oracle_name == **name)) {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("no oracle {missing:?} judged in crash pack {}", dir.display()),
        ));
    }
    Ok(Replay { results, ledger })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::crashpack::evidence::EvidenceStrength;
    use crate::oracle::{Check, Transfer, TransferKind, TransferOracle, TransferState};

    fn pack() -> Crashpack {
        let state = TransferState {
            manifest_hash: "sha256:got".into(),
            expected_manifest_hash: "sha256:meant".into(),
            journal_gaps: 1,
            ..TransferState::default()
        };
        let transfer = Transfer { kind: TransferKind::Seal, subject: "try-1".into(), state };
        let clean =
            Transfer { kind: TransferKind::Export, subject: "x".into(), state: TransferState::default() };
        Crashpack::new()
            .with_trace("checkpoint", "frozen")
            .with_trace("note", "Path src/lib.rs differs")
            .with_trace("note", "a repair was tried\nand failed")
            .with_judged(TransferOracle::new("it's a 'seal'").with(Check::Paths, false), transfer)
            .with_judged(TransferOracle::new("export"), clean)
            .with_seed("the run", 7)
            .with_metadata("fork", "try-1\nviolations: 0")
            .with_artifact_path("forks/try-1")
            .with_artifact_path("forks/try-1")
    }

    fn text(pack: &Crashpack, name: &str) -> String {
        String::from_utf8(pack.files().unwrap()[name].clone()).unwrap()
    }

    #[test]
    fn a_pack_replays_on_another_folder_and_reproduces_its_violations() {
        let dir = tempfile::tempdir().unwrap();
        let kept = pack().keep_in(dir.path()).unwrap();
        assert_eq!(pack().keep_in(dir.path()).unwrap(), kept, "the same pack is kept once");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let elsewhere = tempfile::tempdir().unwrap();
        for name in FILES {
            fs::copy(kept.join(name), elsewhere.path().join(name)).unwrap();
        }
        let replay = replay(elsewhere.path(), &["export".into()]).unwrap();
        assert!(replay.reproduces());
        assert_eq!(replay.results, pack().results());
        assert_eq!(replay.ledger.entries[0].evidence.bayes_factor.strength, EvidenceStrength::Strong);
        assert_eq!(replay.ledger.entries[1].evidence.bayes_factor.strength, EvidenceStrength::Against);
        let error = super::replay(elsewhere.path(), &["seal".into()]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_pack_with_any_byte_changed_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let small = TransferState { leaked_obligations: 1, ..TransferState::default() };
        let transfer = Transfer { kind: TransferKind::Seal, subject: "f".into(), state: small };
        let pack = Crashpack::new()
            .with_trace("checkpoint", "on the path of a repair packet")
            .with_judged(TransferOracle::new("seal"), transfer)
            .with_seed("s", 1)
            .with_metadata("k", "v");
        pack.write_to(dir.path()).unwrap();
        assert!(replay(dir.path(), &[]).unwrap().reproduces());
        for (name, bytes) in pack.files().unwrap() {
            for at in 0..bytes.len() {
                let mut changed = bytes.clone();
                changed[at] ^= 1;
                fs::write(dir.path().join(name), &changed).unwrap();
                let error = replay(dir.path(), &[]).unwrap_err();
                let told = matches!(error.kind(), ErrorKind::Damaged | ErrorKind::UnsupportedSchema);
                assert!(told, "{name}, byte {at}: {error}");
            }
            fs::write(dir.path().join(name), [&bytes[..], b"\n"].concat()).unwrap();
            assert_eq!(replay(dir.path(), &[]).unwrap_err().kind(), ErrorKind::Damaged, "{name}");
            fs::write(dir.path().join(name), bytes).unwrap();
        }
        fs::remove_file(dir.path().join("quiclog")).unwrap();
        assert!(replay(dir.path(), &[]).is_err());
    }

    #[test]
    fn the_same_input_makes_the_same_bytes_and_every_file_is_there() {
        assert_eq!(pack().files().unwrap(), pack().files().unwrap());
        let names: Vec<&str> = pack().files().unwrap().into_keys().collect();
        let mut all = FILES.to_vec();
        all.sort_unstable();
        assert_eq!(names, all);
    }

    #[test]
    fn lines_of_the_trace_are_sorted_into_their_logs() {
        assert_eq!(
            text(&pack(), "pathlog"),
            "[000001] checkpoint frozen\n[000002] note Path src/lib.rs differs"
        );
        assert_eq!(text(&pack(), "repairlog"), r"[000003] note a repair was tried\nand failed");
        assert_eq!(text(&pack(), "quiclog"), "");
    }

    #[test]
    fn the_manifest_and_the_journal_say_what_was_found_and_no_value_can_add_a_line() {
        let manifest = text(&pack(), "manifest");
        assert!(
            manifest.contains("\nviolations: 2\n") && !manifest.contains("\nviolations: 0"),
            "{manifest}"
        );
        assert!(manifest.contains("  the run: 7\n") && manifest.contains("  - forks/try-1\n"), "{manifest}");
        let journal = text(&pack(), "journal");
        assert!(journal.contains("    - type: manifest_integrity\n      severity: High\n"), "{journal}");
        assert!(journal.contains("        gap_count: 1\n"), "{journal}");
        let digest = text(&pack(), "journal.digest");
        let of_journal = crate::store::Digest::of(journal.as_bytes());
        assert_eq!(digest, format!("digest: {of_journal}\nbytes: {}\n", journal.len()));
    }

    #[test]
    fn the_script_hands_over_exactly_the_oracles_and_the_seeds() {
        let dir = tempfile::tempdir().unwrap();
        pack().write_to(dir.path()).unwrap();
        let output = std::process::Command::new(dir.path().join("replay_command.sh"))
            .env("PFIMG", "printf")
            .output()
            .unwrap();
        // printf takes its first argument as the format and prints nothing else of the rest.
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "replay");
        let script = text(&pack(), "replay_command.sh");
        assert!(
            script.contains(r#"replay --oracle='it'"'"'s a '"'"'seal'"'"'' --oracle=export ."#),
            "{script}"
        );
        assert!(script.contains("\nexport PFIMG_SEED_THE_RUN=7\n"), "{script}");
    }

    #[test]
    fn what_is_no_pack_is_told() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(replay(dir.path(), &[]).unwrap_err().kind(), ErrorKind::NotFound);
        for name in FILES {
            fs::write(dir.path().join(name), "[]").unwrap();
        }
        assert_eq!(replay(dir.path(), &[]).unwrap_err().kind(), ErrorKind::Damaged);
        fs::remove_file(dir.path().join("journal")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", dir.path().join("journal")).unwrap();
        assert!(replay(dir.path(), &[]).is_err());
    }
}
