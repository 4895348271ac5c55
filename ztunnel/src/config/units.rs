//! Values with units.

use std::fmt::Debug;
use std::time::Duration;

/// Whether it is within both bounds.
pub(super) fn bounded<T: PartialOrd + Debug>(value: T, least: T, most: T) -> Result<T, String> {
    match (&least..=&most).contains(&&value) {
        true => Ok(value),
        false => Err(format!("must be between {least:?} and {most:?}")),
    }
}

/// A number with one of the units `ms`, `s`, `m`, `h`, `d` and `days`, or several (`1h30m`); a number alone is seconds, as in
/// Istio's variables.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let mut rest = text;
    let mut total = Some(0_u64);
    loop {
        let (number, unit, after) = term(rest).ok_or("expected a number with a unit, such as 10s")?;
        let millis = match unit {
            "ms" => 1,
            "" | "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" | "days" => 86_400_000,
            _ => return Err(format!("unit `{unit}` is none of ms, s, m, h, d")),
        };
        total = total.and_then(|total| number.checked_mul(millis)?.checked_add(total));
        if after.is_empty() {
            return total.map(Duration::from_millis).ok_or_else(|| "too long".to_owned());
        }
        rest = after;
    }
}

/// A number of bytes, with one of the units `KiB`, `MiB` and `GiB` if it has one.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let (number, unit, rest) = term(text).ok_or("expected a number of bytes, such as 4MiB")?;
    let shift = match (unit, rest) {
        ("", "") => 0,
        ("KiB", "") => 10,
        ("MiB", "") => 20,
        ("GiB", "") => 30,
        _ => return Err(format!("unit `{unit}{rest}` is none of KiB, MiB, GiB")),
    };
    number.checked_mul(1 << shift).ok_or_else(|| "too large".to_owned())
}

/// A number, its unit, and what follows.
fn term(text: &str) -> Option<(u64, &str, &str)> {
    let (number, rest) = text.split_at(text.bytes().take_while(u8::is_ascii_digit).count());
    let (unit, rest) = rest.split_at(rest.bytes().take_while(|byte| !byte.is_ascii_digit()).count());
    // The split is beside digits, so between characters.
    Some((number.parse().ok()?, unit, rest))
}
