//! In which format metrics are told: what the client takes, by its Accept and Accept-Encoding (RFC 9110 12.5), and the older format made
//! of the newer one.

use http::{HeaderMap, HeaderName, header};

/// A format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' text format 0.0.4: for who does not ask for the other by its name, as people at a terminal do not.
    Text,
}

impl Format {
    /// The one that the client would rather have.
    pub(crate) fn wanted(headers: &HeaderMap) -> Self {
        let (mut open, mut text, mut any) = (0.0, None, 0.0);
        for Range { name, weight, version } in ranges(headers, &header::ACCEPT) {
            match name {
                "application/openmetrics-text" if matches!(version, None | Some("1.0.0" | "0.0.1")) => {
                    open = weight.max(open);
                }
                "text/plain" => text = Some(weight.max(text.unwrap_or(0.0))),
                "text/*" | "*/*" => any = weight.max(any),
                _ => {}
            }
        }
        match open > 0.0 && open >= text.unwrap_or(any) {
            true => Self::OpenMetrics,
            false => Self::Text,
        }
    }

    /// Its content type.
    pub(crate) const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Whether the client takes gzip.
pub(crate) fn takes_gzip(headers: &HeaderMap) -> bool {
    let (mut gzip, mut any) = (None, 0.0);
    for Range { name, weight, .. } in ranges(headers, &header::ACCEPT_ENCODING) {
        match name {
            "gzip" | "x-gzip" => gzip = Some(weight),
            "*" => any = weight,
            _ => {}
        }
    }
    gzip.unwrap_or(any) > 0.0
}

/// One of the things that a client takes.
struct Range<'a> {
    name: &'a str,
    /// From 0, not at all, to 1.
    weight: f32,
    version: Option<&'a str>,
}

fn ranges<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = Range<'a>> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let mut range = Range { name: parts.next().unwrap_or_default(), weight: 1.0, version: None };
        for (key, value) in parts.filter_map(|parameter| parameter.split_once('=')) {
            match key {
                "q" => range.weight = value.parse().unwrap_or(0.0),
                "version" => range.version = Some(value.trim_matches('"')),
                _ => {}
            }
        }
        range
    })
}

/// OpenMetrics text in the older format: there a family of counters is called as its samples are, units and an end are not told.
pub(crate) fn as_text(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len() + openmetrics.len() / 64);
    let mut help = None;
    for line in openmetrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                other => ("", other),
            };
            if let Some((_, help)) = help.take().filter(|(of, _)| *of == name) {
                push(&mut text, &["# HELP ", name, suffix, " ", help, "\n"]);
            }
            push(&mut text, &["# TYPE ", name, suffix, " ", kind, "\n"]);
        } else if !line.starts_with("# ") {
            push(&mut text, &[line, "\n"]);
        }
    }
    text
}

fn push(text: &mut String, pieces: &[&str]) {
    pieces.iter().for_each(|piece| text.push_str(piece));
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(name: HeaderName, value: &'static str) -> HeaderMap {
        [(name, HeaderValue::from_static(value))].into_iter().collect()
    }

    /// What Prometheus 3 sends.
    const PROMETHEUS: &str = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
        application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
        text/plain;version=0.0.4;q=0.3,*/*;q=0.2";

    #[test]
    fn who_asks_for_openmetrics_by_its_name_gets_it_and_nobody_else() {
        for (accept, expected) in [
            (PROMETHEUS, Format::OpenMetrics),
            ("application/openmetrics-text", Format::OpenMetrics),
            ("application/openmetrics-text; version=\"1.0.0\", */*", Format::OpenMetrics),
            ("text/plain;q=0.2, application/openmetrics-text;q=0.5", Format::OpenMetrics),
            ("text/plain, application/openmetrics-text;q=0.5", Format::Text),
            ("application/openmetrics-text;q=0", Format::Text),
            ("application/openmetrics-text;version=2.0.0", Format::Text),
            ("application/openmetrics-text;q=many", Format::Text),
            ("text/plain;version=0.0.4", Format::Text),
            ("*/*", Format::Text),
            ("", Format::Text),
        ] {
            assert_eq!(Format::wanted(&headers(header::ACCEPT, accept)), expected, "{accept}");
        }
        assert_eq!(Format::wanted(&HeaderMap::new()), Format::Text);
    }

    #[test]
    fn gzip_is_for_those_who_take_it() {
        for (accept, expected) in [
            ("gzip", true),
            ("deflate, gzip;q=0.5", true),
            ("*", true),
            ("gzip;q=0, *", false),
            ("identity", false),
            ("", false),
        ] {
            assert_eq!(takes_gzip(&headers(header::ACCEPT_ENCODING, accept)), expected, "{accept}");
        }
        assert!(!takes_gzip(&HeaderMap::new()));
    }

    #[test]
    fn the_older_format_calls_a_family_as_its_samples_are_called() {
        let openmetrics = "# HELP opened Opened connections.\n# TYPE opened counter\nopened_total{a=\"# HELP \"} 1\n\
            # HELP held Held.\n# TYPE held gauge\nheld 2\n\
            # HELP took_seconds Took.\n# TYPE took_seconds histogram\n# UNIT took_seconds seconds\n\
            took_seconds_sum 0.5\ntook_seconds_count 1\ntook_seconds_bucket{le=\"+Inf\"} 1\n\
            # TYPE odd unknown\nodd 3\n# EOF\n";
        let text = "# HELP opened_total Opened connections.\n# TYPE opened_total counter\nopened_total{a=\"# HELP \"} 1\n\
            # HELP held Held.\n# TYPE held gauge\nheld 2\n\
            # HELP took_seconds Took.\n# TYPE took_seconds histogram\n\
            took_seconds_sum 0.5\ntook_seconds_count 1\ntook_seconds_bucket{le=\"+Inf\"} 1\n\
            # TYPE odd untyped\nodd 3\n";
        assert_eq!(as_text(openmetrics), text);
    }
}
