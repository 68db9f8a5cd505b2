//! netfilter's translation rules, whoever printed them.

/// Chains with their rules.
#[derive(Debug, Default)]
pub(super) struct Ruleset {
    pub(super) chains: Vec<Chain>,
    /// Interfaces that any rule names.
    pub(super) interfaces: Vec<String>,
    /// Rules that filter what is forwarded.
    pub(super) filters: usize,
}

impl Ruleset {
    pub(super) fn chain(&mut self, table: &str, name: &str) -> &mut Chain {
        let there = self.chains.iter().position(|chain| chain.table == table && chain.name == name);
        let index = there.unwrap_or_else(|| {
            let chain = Chain { table: table.to_owned(), name: name.to_owned(), ..Chain::default() };
            self.chains.push(chain);
            self.chains.len() - 1
        });
        &mut self.chains[index]
    }

    /// Takes note of an interface's name; patterns are none.
    pub(super) fn saw(&mut self, name: &str) {
        let known = self.interfaces.iter().any(|known| known == name);
        let is_name = (1..=15).contains(&name.len()) && !name.ends_with(['+', '*']);
        if !known && is_name && name != "lo" {
            self.interfaces.push(name.to_owned());
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Chain {
    pub(super) table: String,
    pub(super) name: String,
    pub(super) hook: Hook,
    pub(super) rules: Vec<Rule>,
}

/// What calls a chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Hook {
    /// Other chains, if any.
    #[default]
    None,
    Prerouting,
    Postrouting,
    /// The host's own traffic.
    Own,
    /// No hook of translation.
    Filter,
}

#[derive(Clone, Debug)]
pub(super) struct Rule {
    /// Where it stands, and as it was written.
    pub(super) text: String,
    pub(super) when: When,
    pub(super) action: Action,
}

/// What a rule holds for. Addresses are as a configuration has them: `!` before what is out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct When {
    pub(super) source: Vec<String>,
    pub(super) destination: Vec<String>,
    pub(super) protocols: Vec<String>,
    pub(super) inbound: Vec<Name>,
    pub(super) outbound: Vec<Name>,
    /// Destination ports, first and last.
    pub(super) ports: Vec<(u16, u16)>,
    /// Only what is for an address of the host.
    pub(super) local: bool,
    /// Conditions that a configuration has no words for.
    pub(super) odd: Vec<String>,
}

impl When {
    /// What both hold for.
    pub(super) fn and(mut self, other: Self) -> Self {
        for (mine, others) in [(&mut self.source, other.source), (&mut self.destination, other.destination)] {
            let positive = |list: &[String]| list.iter().any(|word| !word.starts_with('!'));
            if positive(mine) && positive(&others) && *mine != others {
                self.odd.push(format!("both {} and {}", mine.join(","), others.join(",")));
            } else if *mine != others {
                mine.extend(others);
            }
        }
        join(&mut self.protocols, other.protocols, "protocols", &mut self.odd);
        join(&mut self.inbound, other.inbound, "interfaces", &mut self.odd);
        join(&mut self.outbound, other.outbound, "interfaces", &mut self.odd);
        join(&mut self.ports, other.ports, "ports", &mut self.odd);
        self.local |= other.local;
        self.odd.extend(other.odd);
        self
    }
}

fn join<T: PartialEq>(mine: &mut Vec<T>, others: Vec<T>, what: &str, odd: &mut Vec<String>) {
    if mine.is_empty() {
        *mine = others;
    } else if !others.is_empty() && *mine != others {
        odd.push(format!("two conditions on {what}"));
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) name: String,
    pub(super) negated: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Masquerade {
        ports: Option<String>,
    },
    Snat {
        addresses: Vec<String>,
        ports: Option<String>,
    },
    Dnat(Target),
    Redirect,
    /// A prefix for another, address by address.
    Netmap(String),
    Accept,
    Return,
    Jump(String),
    /// Neither translates nor decides.
    Nothing,
    /// Something else, in its own words.
    Other(String),
}

/// Where something is sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Target {
    /// One address, or a range.
    pub(super) address: String,
    pub(super) ports: Option<(u16, u16)>,
    /// The port that the first of them stands for.
    pub(super) base: Option<u16>,
}

impl Target {
    /// `10.1.1.12:80`, `10.1.1.12:6000-6009/5000`.
    pub(super) fn parse(word: &str) -> Option<Self> {
        let (word, base) = match word.split_once('/') {
            Some((word, base)) => (word, Some(base.parse().ok()?)),
            None => (word, None),
        };
        let (address, ports) = match word.split_once(':') {
            Some((address, ports)) => (address, Some(self::ports(ports)?)),
            None => (word, None),
        };
        Some(Self { address: address.to_owned(), ports, base })
    }
}

/// `80`, `6000-6009` or `6000:6009`.
pub(super) fn ports(word: &str) -> Option<(u16, u16)> {
    let (first, last) = word.split_once(['-', ':']).unwrap_or((word, word));
    Some((port(first)?, port(last)?))
}

/// A number, or the name of one that the tools print.
fn port(word: &str) -> Option<u16> {
    const NAMES: [(&str, u16); 8] = [
        ("ftp", 21),
        ("ssh", 22),
        ("smtp", 25),
        ("domain", 53),
        ("http", 80),
        ("imap2", 143),
        ("ntp", 123),
        ("https", 443),
    ];
    let named = NAMES.iter().find(|(name, _)| *name == word).map(|(_, number)| *number);
    word.parse().ok().or(named)
}

/// The prefixes that a range of addresses is made of; other words as they are, without `/32`.
pub(super) fn prefixes(word: &str) -> Vec<String> {
    let range =
        word.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
    match range {
        Some((first, last)) => ipnet::Ipv4Subnets::new(first, last, 0)
            .map(|net| net.to_string().trim_end_matches("/32").to_owned())
            .collect(),
        None => vec![word.trim_end_matches("/32").to_owned()],
    }
}

/// Whether the word is an IPv4 prefix, range or address.
pub(super) fn is_address(word: &str) -> bool {
    word.split(['-', '/']).next().is_some_and(|first| first.parse::<std::net::Ipv4Addr>().is_ok())
}

/// A protocol as a configuration names it.
pub(super) fn protocol(word: &str) -> Option<String> {
    const NUMBERS: [(&str, &str); 8] = [
        ("1", "icmp"),
        ("6", "tcp"),
        ("17", "udp"),
        ("gre", "47"),
        ("esp", "50"),
        ("ah", "51"),
        ("sctp", "132"),
        ("udplite", "136"),
    ];
    let named = NUMBERS.iter().find(|(name, _)| *name == word).map(|(_, number)| *number);
    let plain = matches!(word, "tcp" | "udp" | "icmp") || word.parse::<u8>().is_ok_and(|number| number != 0);
    named.or_else(|| plain.then_some(word)).map(str::to_owned)
}

/// Words, of which those in quotes are one each, without the quotes.
pub(super) fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' if quoted => word.get_or_insert_default().extend(letters.next()),
            _ if letter.is_whitespace() && !quoted => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}
