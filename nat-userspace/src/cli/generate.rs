//! `natgw completions` and `natgw man`: what is made from the command's own description.

use std::io::{self, Write as _};

use clap::{Args, Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{Cli, Failure, output};

#[derive(Args, Debug)]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(super) fn carry_out(self) -> Result<(), Failure> {
        // Into memory first: the generator panics where writing fails.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "natgw", &mut script);
        if self.shell == Shell::Fish {
            third_level(&Cli::command(), &mut script)?;
        }
        let mut out = output::stdout();
        out.write_all(&script)?;
        Ok(out.flush()?)
    }
}

/// The options of `natgw rule add forward` and its like, for fish: `clap_complete` goes two levels deep there.
fn third_level(command: &Command, script: &mut Vec<u8>) -> io::Result<()> {
    let quoted = |words: &str| words.replace('\\', "\\\\").replace('\'', "\\'");
    for verb in command.get_subcommands() {
        for part in verb.get_subcommands() {
            for kind in part.get_subcommands() {
                let [verb, part, name] = [verb, part, kind].map(Command::get_name);
                let place = format!(
                    "__fish_natgw_using_subcommand {verb}; and __fish_seen_subcommand_from {part}; and __fish_seen_subcommand_from {name}"
                );
                for argument in kind.get_arguments() {
                    let Some(long) = argument.get_long() else { continue };
                    let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
                    let value = if argument.get_action().takes_values() { " -r" } else { "" };
                    let help = quoted(&help);
                    writeln!(script, "complete -c natgw -n \"{place}\" -l {long} -d '{help}'{value}")?;
                }
            }
        }
    }
    Ok(())
}

/// Writes one page for the command and all its verbs.
pub(super) fn man() -> Result<(), Failure> {
    let mut out = output::stdout();
    out.write_all(&page()?)?;
    Ok(out.flush()?)
}

fn page() -> io::Result<Vec<u8>> {
    let mut command = Cli::command();
    // Gives each verb its full name and the arguments that all verbs share.
    command.build();
    let mut page = Vec::new();
    let man = Man::new(command.clone());
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    verbs(&command, &mut page)?;
    page.extend_from_slice(FOOTER.as_bytes());
    Ok(page)
}

/// A section for each verb, with its parts one level down.
fn verbs(command: &Command, page: &mut Vec<u8>) -> io::Result<()> {
    for verb in command.get_subcommands().filter(|verb| verb.get_name() != "help") {
        if verb.has_subcommands() {
            verbs(verb, page)?;
            continue;
        }
        let name = verb.get_bin_name().unwrap_or_else(|| verb.get_name()).to_uppercase();
        // Said once for all verbs.
        let verb = verb.clone().disable_help_flag(true).mut_args(|argument| {
            let shared = argument.is_global_set() || argument.get_id() == "help";
            argument.hide(shared)
        });
        let own_arguments = verb.get_arguments().any(|argument| !argument.is_hide_set());
        let man = Man::new(verb);
        let mut part = Vec::new();
        man.render_synopsis_section(&mut part)?;
        man.render_description_section(&mut part)?;
        if own_arguments {
            man.render_options_section(&mut part)?;
        }
        writeln!(page, ".SH \"{name}\"")?;
        page.extend_from_slice(String::from_utf8_lossy(&part).replace(".SH ", ".SS ").as_bytes());
    }
    Ok(())
}

const FOOTER: &str = r#".SH "EXIT STATUS"
.TP
0
Fine.
.TP
1
It failed: standard error says what was tried, on what, why, and what to do.
.TP
2
The command line makes no sense.
.SH ENVIRONMENT
.TP
NATGW_SOCKET
The control socket, as \-\-socket.
.TP
NATGW_LOG
What the daemon logs: error, warn, info (default), debug or trace.
.TP
NO_COLOR
If set and not empty, nothing is set off by terminal sequences.
.SH FILES
.TP
/etc/natgw/natgw.toml
The configuration.
.TP
/run/natgw/natgw.sock
The control socket.
.TP
/sys/fs/bpf/natgw
Where maps and links are pinned.
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fish_knows_what_is_three_levels_deep() {
        let mut script = Vec::new();
        third_level(&Cli::command(), &mut script).expect("a Vec takes all");
        let lines = String::from_utf8(script).expect("UTF-8");
        let external = lines.lines().find(|line| line.contains("-l external "));
        assert!(
            external.is_some_and(|line| line.contains("from add; and") && line.ends_with(" -r")),
            "{lines}"
        );
        let flag = lines.lines().find(|line| line.contains("from static") && line.contains("-l save "));
        assert!(flag.is_some_and(|line| line.ends_with('\'')), "{lines}");
    }

    #[test]
    fn the_manual_has_every_verb_once() {
        let page = String::from_utf8(page().expect("a Vec takes all")).expect("UTF-8");
        for verb in
            ["RUN", "CHECK", "STATUS", "SESSION LIST", "SESSION DELETE", "POOL LIST", "RULE LIST", "MAN"]
        {
            assert_eq!(page.matches(&format!(".SH \"NATGW {verb}\"\n")).count(), 1, "{verb}\n{page}");
        }
        assert_eq!(page.matches("\\-\\-socket\\fR \\fI<PATH>").count(), 1, "{page}");
        assert!(page.contains("\\-\\-remote"), "{page}");
    }
}
