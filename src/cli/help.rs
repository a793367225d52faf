//! `pfimg --help`: the commands grouped by task, and the exit codes.

use std::fmt::Write as _;

use clap::Command;

/// The groups, each with its commands in display order.
const GROUPS: [(&str, &[&str]); 5] = [
    ("Start", &["import", "mount", "fork", "run", "demo"]),
    ("Look", &["status", "forks", "output", "images", "tags", "seals", "log", "show", "diff"]),
    ("Keep", &["apply", "seal", "restore", "tag", "cp", "mv", "export"]),
    ("Clean up", &["discard", "untag", "umount", "prune", "gc"]),
    ("Upkeep", &["verify", "audit", "replay", "fixture"]),
];

/// What a newcomer needs to read the rest.
const FIRST_STEPS: &str = "\
First steps, in a project:
  pfimg run try -- COMMAND    runs COMMAND in a fork of the project, named `try`
  pfimg diff try -p           shows the changes in the fork
  pfimg apply try             applies them to the project; `pfimg apply --undo` undoes it
  pfimg discard try --seals   removes the fork

Words:
  fork   a writable copy of an image, usually for one agent
  image  a saved state of a project; it never changes
  seal   an image made of a fork: FORK@2 is its second seal, FORK@0 its beginning
  tag    a name for an image; `latest` is the newest image that no apply made
  store  the directory that contains images and forks
  mount  a directory that shows a store, while a program (its daemon) runs
";

/// The exit codes in short. docs/TROUBLESHOOTING.md has the whole table.
const EXIT_CODES: &str = "\
Exit codes:
  0 done        1 differs, or some of several failed    2 usage
  3 conflict    4 damage       5 not found              6 exists
  7 busy, refused or no permission       8 FUSE, namespaces or disk
  `run` exits with the code of its command, with 128 plus a signal's number, or with
  124 after --timeout, 125 if pfimg cannot run it, 126 not executable, 127 not found

Every command has --json: one object on stdout, errors included.";

/// Returns whether a word is the name of a command.
pub(super) fn is_command(word: &str) -> bool {
    GROUPS.iter().any(|(_, names)| names.contains(&word))
}

/// Returns the same command line with a help that lists its commands in groups.
pub(super) fn grouped(cli: Command) -> Command {
    let template = format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{FIRST_STEPS}\n{}Options:\n{{options}}\n\n{EXIT_CODES}\n",
        listing(&cli)
    );
    cli.help_template(template)
}

fn listing(cli: &Command) -> String {
    let shown: Vec<&Command> = cli.get_subcommands().filter(|command| !command.is_hide_set()).collect();
    let width = shown.iter().map(|command| command.get_name().len()).max().unwrap_or(0);
    let mut text = String::new();
    let mut list = |heading: &str, commands: &[&Command]| {
        if commands.is_empty() {
            return;
        }
        let _ = writeln!(text, "{heading}:");
        for command in commands {
            let _ = writeln!(text, "  {:width$}  {}", command.get_name(), sentence(command));
        }
        text.push('\n');
    };
    for (heading, names) in GROUPS {
        let find = |name: &&str| shown.iter().find(|command| command.get_name() == *name).copied();
        list(heading, &names.iter().filter_map(find).collect::<Vec<_>>());
    }
    let is_grouped = |command: &&Command| GROUPS.iter().any(|(_, names)| names.contains(&command.get_name()));
    list("More", &shown.iter().filter(|command| !is_grouped(command)).copied().collect::<Vec<_>>());
    text
}

/// Returns the first sentence of a command's description.
fn sentence(command: &Command) -> String {
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    about.split(". ").next().unwrap_or_default().trim().trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn every_command_is_in_one_group_with_one_short_sentence() {
        let cli = crate::cli::Cli::command();
        for command in cli.get_subcommands().filter(|command| !command.is_hide_set()) {
            let name = command.get_name();
            let groups = GROUPS.iter().filter(|(_, names)| names.contains(&name)).count();
            assert_eq!(groups, 1, "{name} is in {groups} groups of src/cli/help.rs");
            let sentence = sentence(command);
            assert!(
                (10..=76).contains(&sentence.len()),
                "{name}: {sentence:?} has {} letters",
                sentence.len()
            );
            assert!(sentence.starts_with(|first: char| first.is_ascii_uppercase()), "{name}: {sentence:?}");
        }
        for name in GROUPS.iter().flat_map(|(_, names)| *names) {
            assert!(cli.find_subcommand(name).is_some(), "there is no command {name}");
        }
    }
}
