//! Log filters as `/logging` takes them: of `RUST_LOG`'s form, or of Istio's, where a module and its level stand on both sides of a colon
//! (contract 1.10). What is asked for is added to what is in force.

/// The levels there are; anything else behind a colon is a part of a module's name.
const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];

/// `current` with what `wanted` says: a level for a module replaces that module's, one for none that of all others.
///
/// Whether it is a filter at all is for whoever uses it to say.
pub fn merged(current: &str, wanted: &str) -> String {
    // Filters by spans and their fields have commas of their own: such a one stands for itself.
    if current.contains('[') || wanted.contains('[') {
        return wanted.to_owned();
    }
    let mut directives: Vec<(&str, &str)> = Vec::new();
    for directive in current.split(',').chain(wanted.split(',')) {
        let directive = directive.trim();
        if directive.is_empty() {
            continue;
        }
        let (module, level) = parts(directive);
        directives.retain(|(known, _)| *known != module);
        directives.push((module, level));
    }
    let text = |(module, level): &(&str, &str)| match (*module, *level) {
        ("", level) => level.to_owned(),
        (module, "") => module.to_owned(),
        (module, level) => format!("{module}={level}"),
    };
    directives.iter().map(text).collect::<Vec<_>>().join(",")
}

/// The module, which may be none, and its level, which may be none as well.
fn parts(directive: &str) -> (&str, &str) {
    let is_level = |text: &str| LEVELS.iter().any(|level| text.eq_ignore_ascii_case(level));
    if let Some(parts) = directive.split_once('=') {
        return parts;
    }
    match directive.rsplit_once(':') {
        Some((module, level)) if is_level(level) && !module.ends_with(':') => (module, level),
        _ if is_level(directive) => ("", directive),
        _ => (directive, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_added_to_what_is_in_force() {
        for (case, current, wanted, expected) in [
            ("a level for all", "info", "debug", "debug"),
            ("a level for all leaves modules' own", "info,access=off", "warn", "access=off,warn"),
            ("a module's", "info", "access:debug", "info,access=debug"),
            ("in RUST_LOG's form", "info", "access=debug", "info,access=debug"),
            ("a path", "info", "ztunnel::proxy::inbound:trace", "info,ztunnel::proxy::inbound=trace"),
            ("several", "info", "access:off, xds:debug", "info,access=off,xds=debug"),
            ("again", "info,access=debug", "access:info", "info,access=info"),
            ("a module alone", "info", "ztunnel::info", "info,ztunnel::info"),
            ("level and module", "info", "warn,h2:error", "warn,h2=error"),
            ("in capitals", "info", "access:DEBUG", "info,access=DEBUG"),
            ("a filter by spans replaces all", "info", "[span{a=b,c=d}]=info", "[span{a=b,c=d}]=info"),
            ("nothing", "info", "", "info"),
        ] {
            assert_eq!(merged(current, wanted), expected, "{case}");
        }
    }
}
