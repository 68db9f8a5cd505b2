//! From the shape of the file to a [`Config`]: all but the rules.

use nat_common::delegate::LENT;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;

use serde_spanned::Spanned;

use super::error::{Fault, Problem, Problems};
use super::{AttachMode, Config, Control, InterfaceConfig, Limits, Metrics, Side, Unmatched, VlanConfig};
use super::{conflicts, file, log, rules, timeouts};

/// Judges a whole configuration.
pub(super) fn config(text: &str) -> Result<Config, Vec<Problem>> {
    let raw = file::read(text)?;
    let mut problems = Problems::new(text);
    let mut warnings = Vec::new();

    let interfaces = interfaces(&raw.interface, &mut problems);
    let mut judge = rules::Judge::new(&interfaces, &mut problems, &mut warnings);
    let snat = judge.snat(&raw.snat);
    let statics = judge.statics(&raw.statics);
    let forwards = judge.forwards(&raw.forward);
    let services = judge.services(&raw.service);
    conflicts::find(&snat, &statics, &forwards, &mut problems, &mut warnings);
    conflicts::find_services(&services, &statics, &forwards, &mut problems);
    let config = Config {
        snat: rules::unplaced(snat),
        statics: rules::unplaced(statics),
        forwards: rules::unplaced(forwards),
        services: rules::unplaced(services),
        timeouts: timeouts::timeouts(&raw.timeouts, &mut problems, &mut warnings),
        limits: limits(&raw.limits, &mut problems),
        unmatched_outside: choose(raw.unmatched.outside.as_ref(), &Unmatched::WORDS, &mut problems),
        unmatched_forged: match &raw.unmatched.forged {
            Some(_) => choose(raw.unmatched.forged.as_ref(), &Unmatched::WORDS, &mut problems),
            None => Unmatched::Drop,
        },
        control: control(&raw.control, &mut problems),
        interfaces,
        metrics: metrics(&raw.metrics, &mut problems),
        log: log::log(&raw.log, &mut problems),
        warnings,
    };
    let found = problems.into_found();
    if found.is_empty() { Ok(config) } else { Err(found) }
}

/// Where the metrics are served.
fn metrics(raw: &file::Metrics, problems: &mut Problems<'_>) -> Metrics {
    let listen = raw.listen.as_ref().filter(|word| !word.get_ref().is_empty());
    Metrics { listen: listen.and_then(|word| endpoint(word, "127.0.0.1:9477", problems)) }
}

/// An address with a port.
pub(super) fn endpoint(
    word: &Spanned<String>,
    example: &str,
    problems: &mut Problems<'_>,
) -> Option<SocketAddr> {
    let address = word.get_ref().parse().ok().filter(|address: &SocketAddr| address.port() != 0);
    let fault = || {
        Fault::new(
            format!("`{}` is not an address with a port", word.get_ref()),
            format!("an address and a port such as \"{example}\""),
        )
    };
    problems.check(&word.span(), address.ok_or_else(fault))
}

fn interfaces(raw: &[Spanned<file::Interface>], problems: &mut Problems<'_>) -> Vec<InterfaceConfig> {
    let mut names = Names::new("interface");
    let mut interfaces = Vec::new();
    let mut sides_known = true;
    for section in raw {
        let interface = section.get_ref();
        let name = required(
            interface.name.as_ref(),
            section,
            "name",
            "the interface as `ip link` shows it",
            problems,
        )
        .and_then(|name| problems.check(&name.span(), interface_name(name.get_ref())).map(|()| name));
        let side =
            required(interface.side.as_ref(), section, "side", "side = \"inside\" or \"outside\"", problems)
                .and_then(|side| problems.check(&side.span(), choice(side.get_ref(), &Side::WORDS)));
        let mode = choose(interface.mode.as_ref(), &AttachMode::WORDS, problems);
        let mss_clamp = interface.mss_clamp.as_ref().and_then(|value| {
            let size = u16::try_from(*value.get_ref()).ok().filter(|size| MSS.contains(size));
            problems.check(
                &value.span(),
                size.ok_or_else(|| {
                    Fault::new(
                        format!("no MSS is {}", value.get_ref()),
                        format!(
                            "{} to {}, such as 1360; the MTU of the narrowest link less 40",
                            MSS.start(),
                            MSS.end()
                        ),
                    )
                }),
            )
        });
        sides_known &= side.is_some();
        let vlan = vlan(interface, section, problems);
        let (Some(name), Some(side)) = (name, side) else { continue };
        names.add(name.get_ref(), &name.span(), problems);
        let twin = interfaces.iter().find(|other: &&InterfaceConfig| vlan.is_some() && other.vlan == vlan);
        if let Some(twin) = twin {
            problems.add(
                &section.span(),
                Fault::new(
                    format!("{} is the same VLAN as {}", name.get_ref(), twin.name),
                    "one [[interface]] for each VLAN of a parent",
                ),
            );
        }
        interfaces.push(InterfaceConfig { name: name.get_ref().clone(), side, mode, mss_clamp, vlan });
    }
    // With a side misspelt it is not known what is missing; that is complained about already.
    for (side, word) in [(Side::Inside, "inside"), (Side::Outside, "outside")] {
        if sides_known && !interfaces.iter().any(|interface| interface.side == side) {
            problems.add(
                &(0..0),
                Fault::new(
                    format!("no {word} interface"),
                    format!("add [[interface]] with a name and side = \"{word}\""),
                ),
            );
        }
    }
    interfaces
}

/// The VLAN that an interface is said to be.
fn vlan(
    interface: &file::Interface,
    section: &Spanned<file::Interface>,
    problems: &mut Problems<'_>,
) -> Option<VlanConfig> {
    let (parent, value) = match (&interface.parent, &interface.vlan) {
        (None, None) => return None,
        (Some(parent), Some(value)) => (parent, value),
        (only, _) => {
            let (given, missing) =
                if only.is_some() { ("parent", "vlan = 5") } else { ("vlan", "parent = \"eth0\"") };
            problems.add(
                &section.span(),
                Fault::new(format!("`{given}` alone says no VLAN"), format!("add {missing}, or neither")),
            );
            return None;
        }
    };
    problems.check(&parent.span(), interface_name(parent.get_ref()))?;
    if interface.name.as_ref().is_some_and(|name| name.get_ref() == parent.get_ref()) {
        problems.add(
            &parent.span(),
            Fault::new(
                format!("`{}` cannot be a VLAN of itself", parent.get_ref()),
                "`name` is the device with the address and the routes, `parent` the one that tagged frames pass",
            ),
        );
        return None;
    }
    let numbers = match value.get_ref() {
        file::Vlans::One(number) => vec![*number],
        file::Vlans::Several(numbers) => numbers.clone(),
    };
    let numbers: Option<Vec<u16>> = numbers
        .into_iter()
        .map(|number| u16::try_from(number).ok().filter(|it| VLANS.contains(it)))
        .collect();
    let found = match numbers.as_deref() {
        Some(&[number]) => Ok((number, None)),
        Some(&[outer, number]) => Ok((number, Some(outer))),
        _ => Err(Fault::new(
            "no VLAN has this number",
            format!("{} to {}; of a VLAN within another, [outer, inner]", VLANS.start(), VLANS.end()),
        )),
    };
    let (number, outer) = problems.check(&value.span(), found)?;
    Some(VlanConfig { parent: parent.get_ref().clone(), number, outer })
}

fn interface_name(name: &str) -> Result<(), Fault> {
    // What the kernel's dev_valid_name() takes.
    let fits = (1..=15).contains(&name.len()) && name != "." && name != "..";
    if fits && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace()) {
        return Ok(());
    }
    Err(Fault::new(
        format!("`{name}` cannot be an interface's name"),
        "1 to 15 bytes without `/`, `:` and spaces, as `ip link` shows it",
    ))
}

fn limits(raw: &file::Limits, problems: &mut Problems<'_>) -> Limits {
    let default = Limits::default();
    let mut one = |value: Option<&Spanned<i64>>, default: u32, least: u32, most: u32, hint: &str| {
        let Some(value) = value else { return default };
        let number = u32::try_from(*value.get_ref()).ok().filter(|number| (least..=most).contains(number));
        problems
            .check(
                &value.span(),
                number.ok_or_else(|| {
                    Fault::new(format!("{} is not from {least} to {most}", value.get_ref()), hint)
                }),
            )
            .unwrap_or(default)
    };
    let none = "0 means no limit";
    Limits {
        sessions: one(
            raw.sessions.as_ref(),
            default.sessions,
            1,
            MOST_SESSIONS,
            "memory is set aside for this many sessions",
        ),
        mappings: one(raw.mappings.as_ref(), default.mappings, 0, u32::MAX, none),
        sources: one(raw.sources.as_ref(), default.sources, 0, u32::MAX, none),
        sessions_per_source: one(
            raw.sessions_per_source.as_ref(),
            default.sessions_per_source,
            0,
            u32::MAX,
            none,
        ),
        new_per_second_per_source: one(
            raw.new_per_second_per_source.as_ref(),
            default.new_per_second_per_source,
            0,
            u32::MAX,
            none,
        ),
        delegated: one(
            raw.delegated.as_ref(),
            default.delegated,
            0,
            LENT,
            "with 0 the daemon opens every session itself",
        ),
    }
}

fn control(raw: &file::Control, problems: &mut Problems<'_>) -> Control {
    let default = Control::default();
    let mut one = |value: Option<&Spanned<String>>, default: PathBuf, longest: usize| {
        let Some(value) = value else { return default };
        let path = PathBuf::from(value.get_ref());
        if !path.is_absolute() {
            let hint = format!("a full path such as {}", default.display());
            problems.add(
                &value.span(),
                Fault::new(format!("`{}` is not an absolute path", path.display()), hint),
            );
        } else if value.get_ref().len() > longest {
            problems.add(
                &value.span(),
                Fault::new(
                    format!("`{}` has more than {longest} bytes", path.display()),
                    "take a shorter path: the kernel's limit for sockets",
                ),
            );
        }
        path
    };
    Control {
        socket: one(raw.socket.as_ref(), default.socket, LONGEST_SOCKET_PATH),
        bpffs: one(raw.bpffs.as_ref(), default.bpffs, usize::MAX),
    }
}

/// The value of a key that has to be there.
pub(super) fn required<'raw, T, S>(
    value: Option<&'raw Spanned<T>>,
    section: &Spanned<S>,
    key: &str,
    hint: &str,
    problems: &mut Problems<'_>,
) -> Option<&'raw Spanned<T>> {
    if value.is_none() {
        problems.add(&section.span(), Fault::new(format!("`{key}` is missing"), hint));
    }
    value
}

/// The value of a word from a fixed set, the default if the key is absent.
pub(super) fn choose<T: Copy + Default>(
    value: Option<&Spanned<String>>,
    choices: &[(&str, T)],
    problems: &mut Problems<'_>,
) -> T {
    value
        .and_then(|value| problems.check(&value.span(), choice(value.get_ref(), choices)))
        .unwrap_or_default()
}

fn choice<T: Copy>(word: &str, choices: &[(&str, T)]) -> Result<T, Fault> {
    choices.iter().find(|(name, _)| *name == word).map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<String> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        Fault::new(format!("`{word}` is not known here"), format!("one of {}", names.join(", ")))
    })
}

/// Names that may be given only once.
pub(super) struct Names {
    what: &'static str,
    taken: HashSet<String>,
}

impl Names {
    pub(super) fn new(what: &'static str) -> Self {
        Self { what, taken: HashSet::new() }
    }

    /// Takes the name that is given at `span`.
    pub(super) fn add(&mut self, name: &str, span: &Range<usize>, problems: &mut Problems<'_>) {
        if !self.taken.insert(name.to_owned()) {
            problems.add(
                span,
                Fault::new(
                    format!("a second {} has the name `{name}`", self.what),
                    "names are unique, so that listings and filters are clear",
                ),
            );
        }
    }
}

/// Numbers of VLANs (IEEE 802.1Q section 9.6): 0 is none, 4095 reserved.
const VLANS: RangeInclusive<u16> = 1..=4094;

/// From what every host takes (RFC 9293 section 3.7.1) to what fits an IPv4 packet.
const MSS: RangeInclusive<u16> = 536..=65_495;

/// Two entries a session keep the kernel's hash table within its size limit.
const MOST_SESSIONS: u32 = 1 << 26;

/// `sun_path` without its final zero.
const LONGEST_SOCKET_PATH: usize = 107;
