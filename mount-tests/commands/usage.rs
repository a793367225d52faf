//! What the command line says of itself.

use super::support::{command, run};

fn commands_in(help: &str) -> Vec<&str> {
    help.lines().filter(|line| line.starts_with("  ") && line.as_bytes()[2].is_ascii_lowercase()).collect()
}

#[test]
fn the_bare_name_shows_the_help_on_stdout_and_no_hidden_command_is_named_or_suggested() {
    let help = run(&mut command(&["--help"])).exits(0).stdout;
    assert!(commands_in(&help).len() > 20 && !help.contains("__"), "{help}");
    for store in [None, Some("/nowhere")] {
        let mut bare = command(&[]);
        if let Some(store) = store {
            bare.env("PF_STORE", store);
        }
        let shown = run(&mut bare).exits(0);
        assert_eq!((commands_in(&shown.stdout), shown.stderr.as_str()), (commands_in(&help), ""));
    }
    for mistyped in ["prob", "probe", "first-requests", "first"] {
        let said = run(&mut command(&[mistyped])).exits(2).stderr;
        assert!(said.contains(mistyped) && !said.contains("'__"), "{said}");
    }
}

#[test]
fn a_usage_line_shows_what_is_missing_and_no_option_as_if_it_were_required() {
    for name in
        ["untag", "tag", "cp", "mv", "discard", "seal", "restore", "run", "export", "import", "fork", "mount"]
    {
        let said = run(&mut command(&[name, "--store", "/nowhere"]));
        assert!(said.code != 0 && !said.stderr.contains("--store <DIR>"), "{name}: {}", said.stderr);
        if name != "mount" {
            assert!(said.stderr.contains(&format!("Usage: pfimg {name} [OPTIONS]")), "{}", said.stderr);
        }
    }
}
