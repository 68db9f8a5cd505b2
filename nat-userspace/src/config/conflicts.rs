//! Rules that get in each other's way.
//!
//! Statics come before forwards and the first of two forwards wins: a rule that can never match,
//! or a prefix claimed twice, is a mistake that nobody would see in the listings.

use super::address::{AddressRange, show_prefix};
use super::error::{Fault, Problems};
use super::rules::Placed;
use super::{ForwardAddress, ForwardRule, ServiceRule, SnatRule, SnatTarget, StaticRule};

/// Looks at all rules against each other.
pub(super) fn find(
    snat: &[Placed<SnatRule>],
    statics: &[Placed<StaticRule>],
    forwards: &[Placed<ForwardRule>],
    problems: &mut Problems<'_>,
    warnings: &mut Vec<String>,
) {
    for (index, later) in statics.iter().enumerate() {
        for earlier in &statics[..index] {
            static_twice(&earlier.rule, later, problems);
        }
    }
    for (index, later) in forwards.iter().enumerate() {
        if let Some(earlier) = forwards[..index].iter().find(|earlier| hides(&earlier.rule, &later.rule)) {
            problems.add(
                &later.span,
                Fault::new(
                    format!(
                        "forward `{}` overlaps forward `{}`, which comes first",
                        later.rule.name, earlier.rule.name
                    ),
                    "separate their ports or protocols, or give the first one a `source`",
                ),
            );
        }
        if let Some(taken) = statics.iter().find(|placed| claims(&placed.rule, &later.rule)) {
            problems.add(
                &later.span,
                Fault::new(
                    format!(
                        "forward `{}` never matches: static `{}` takes all of its address",
                        later.rule.name, taken.rule.name
                    ),
                    "use another external address, or remove one of the two",
                ),
            );
        }
    }
    for SnatRule { name, to, .. } in snat.iter().map(|placed| &placed.rule) {
        let SnatTarget::Pool(pool) = to else { continue };
        let shared = statics.iter().map(|placed| &placed.rule).find(|rule| {
            let external = AddressRange::from(rule.external);
            pool.ranges().iter().any(|range| range.overlaps(external))
        });
        if let Some(rule) = shared {
            warnings.push(format!(
                "[[snat]] {name} and [[static]] {} share addresses of {}: leave them out of the pool",
                rule.name,
                show_prefix(rule.external)
            ));
        }
    }
}

/// Looks at services against each other and against the rules that go before them.
pub(super) fn find_services(
    services: &[Placed<ServiceRule>],
    statics: &[Placed<StaticRule>],
    forwards: &[Placed<ForwardRule>],
    problems: &mut Problems<'_>,
) {
    for (index, Placed { span, rule: later }) in services.iter().enumerate() {
        let same = |earlier: &&Placed<ServiceRule>| {
            let ServiceRule { protocol, external, port, .. } = &earlier.rule;
            (protocol, external, port) == (&later.protocol, &later.external, &later.port)
        };
        if let Some(earlier) = services[..index].iter().find(same) {
            let fault = Fault::new(
                format!("service `{}` has the endpoint of service `{}`", later.name, earlier.rule.name),
                "put the servers of both into one [[service]]",
            );
            problems.add(span, fault);
        }
        let hides = |placed: &&Placed<ForwardRule>| {
            let forward = &placed.rule;
            forward.external == later.external
                && forward.protocols.contains(later.protocol)
                && forward.external_ports.contains(later.port)
                && forward.source.is_any()
        };
        if let Some(forward) = forwards.iter().find(hides) {
            let fault = Fault::new(
                format!(
                    "service `{}` never matches: forward `{}` takes its endpoint",
                    later.name, forward.rule.name
                ),
                "use another port, or give the forward a `source`",
            );
            problems.add(span, fault);
        }
        let claims = |placed: &&Placed<StaticRule>| matches!(&later.external, ForwardAddress::Address(address) if placed.rule.external.contains(address));
        if let Some(taken) = statics.iter().find(claims) {
            let fault = Fault::new(
                format!(
                    "service `{}` never matches: static `{}` takes all of its address",
                    later.name, taken.rule.name
                ),
                "use another external address, or remove one of the two",
            );
            problems.add(span, fault);
        }
    }
}

fn static_twice(earlier: &StaticRule, later: &Placed<StaticRule>, problems: &mut Problems<'_>) {
    let sides = [
        ("external", earlier.external, later.rule.external),
        ("internal", earlier.internal, later.rule.internal),
    ];
    for (side, first, second) in sides {
        if AddressRange::from(first).overlaps(AddressRange::from(second)) {
            problems.add(
                &later.span,
                Fault::new(
                    format!(
                        "{side} {} of static `{}` overlaps {} of static `{}`",
                        show_prefix(second),
                        later.rule.name,
                        show_prefix(first),
                        earlier.name
                    ),
                    "an address belongs to one [[static]]",
                ),
            );
        }
    }
}

/// Whether some packets that `later` names go to `earlier`, though nothing in the file sets the
/// two apart. Forwards for different sources may share ports on purpose.
fn hides(earlier: &ForwardRule, later: &ForwardRule) -> bool {
    earlier.external == later.external
        && earlier.protocols.intersects(later.protocols)
        && earlier.external_ports.overlaps(later.external_ports)
        && (earlier.source.is_any() || earlier.source == later.source)
}

fn claims(rule: &StaticRule, forward: &ForwardRule) -> bool {
    matches!(&forward.external, ForwardAddress::Address(address) if rule.external.contains(address))
}
