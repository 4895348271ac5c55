//! Which file an address of code is of, by `/proc/self/maps` (proc(5)).

/// A piece of a file in memory that may be executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    /// Its first address.
    pub(super) start: u64,
    /// The address behind it.
    pub(super) end: u64,
    /// Where it begins in the file, bytes.
    pub(super) offset: u64,
    /// The file, or what the kernel calls a piece of its own.
    pub(super) file: String,
}

impl Mapping {
    /// Those of this process; none where `/proc` is not there.
    pub(super) fn all() -> Vec<Self> {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        maps.lines().filter_map(Self::executable).collect()
    }

    fn executable(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        if !words.next()?.contains('x') {
            return None;
        }
        let offset = words.next()?;
        let file = words.nth(2)?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some(Self {
            start: number(start)?,
            end: number(end)?,
            offset: number(offset)?,
            file: file.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_out_of_files_counts_and_nothing_else() {
        let code =
            "55d0c0a00000-55d0c0b00000 r-xp 00012000 fe:01 4242                       /usr/bin/ztunnel";
        let expected = Mapping {
            start: 0x55d0_c0a0_0000,
            end: 0x55d0_c0b0_0000,
            offset: 0x12000,
            file: "/usr/bin/ztunnel".to_owned(),
        };
        assert_eq!(Mapping::executable(code), Some(expected));
        for other in [
            "55d0c0b00000-55d0c0c00000 rw-p 00112000 fe:01 4242                       /usr/bin/ztunnel",
            "7f0000000000-7f0000001000 r-xp 00000000 00:00 0",
            "",
        ] {
            assert_eq!(Mapping::executable(other), None, "{other}");
        }
    }

    #[test]
    fn this_code_is_in_one_of_them() {
        let here = this_code_is_in_one_of_them as *const () as u64;
        assert!(Mapping::all().iter().any(|mapping| (mapping.start..mapping.end).contains(&here)));
    }
}
