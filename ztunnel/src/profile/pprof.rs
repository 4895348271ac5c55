//! pprof's format of profiles, version 3 (`proto/profile.proto` of github.com/google/pprof).

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use prost::Message;

use super::Mapping;

/// What a number counts, and in which unit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind(pub(super) &'static str, pub(super) &'static str);

/// What is profiled.
pub(super) struct Description<'a> {
    /// What the values of each stack are.
    pub(super) kinds: &'a [Kind],
    /// What lies between two samples.
    pub(super) period: (Kind, u64),
    /// How long samples were taken; zero where that means nothing.
    pub(super) length: Duration,
    /// What else who reads it should know; may be empty.
    pub(super) comment: String,
}

/// Where something was counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stack {
    /// An address within each instruction that called the one before; the innermost first.
    pub(super) addresses: Vec<usize>,
    /// Of each kind.
    pub(super) values: Vec<u64>,
}

/// A function that an address is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) function: String,
    pub(super) file: String,
    pub(super) line: u32,
}

/// The message itself.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Profile {
    #[prost(message, repeated, tag = "1")]
    pub(super) sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    pub(super) sample: Vec<Sample>,
    #[prost(message, repeated, tag = "3")]
    pub(super) mapping: Vec<MappingMessage>,
    #[prost(message, repeated, tag = "4")]
    pub(super) location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    pub(super) function: Vec<Function>,
    /// All text; the others refer to it by index. The first is empty.
    #[prost(string, repeated, tag = "6")]
    pub(super) string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    time_nanos: i64,
    #[prost(int64, tag = "10")]
    duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    period: i64,
    #[prost(int64, repeated, tag = "13")]
    comment: Vec<i64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ValueType {
    #[prost(int64, tag = "1")]
    r#type: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    pub(super) location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    pub(super) value: Vec<i64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct MappingMessage {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    memory_start: u64,
    #[prost(uint64, tag = "3")]
    memory_limit: u64,
    #[prost(uint64, tag = "4")]
    file_offset: u64,
    #[prost(int64, tag = "5")]
    filename: i64,
    #[prost(bool, tag = "7")]
    pub(super) has_functions: bool,
    #[prost(bool, tag = "8")]
    has_filenames: bool,
    #[prost(bool, tag = "9")]
    has_line_numbers: bool,
    #[prost(bool, tag = "10")]
    has_inline_frames: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Location {
    #[prost(uint64, tag = "1")]
    pub(super) id: u64,
    #[prost(uint64, tag = "2")]
    mapping_id: u64,
    #[prost(uint64, tag = "3")]
    pub(super) address: u64,
    #[prost(message, repeated, tag = "4")]
    pub(super) line: Vec<Line>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Line {
    #[prost(uint64, tag = "1")]
    pub(super) function_id: u64,
    #[prost(int64, tag = "2")]
    pub(super) line: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    pub(super) name: i64,
    #[prost(int64, tag = "3")]
    system_name: i64,
    #[prost(int64, tag = "4")]
    filename: i64,
}

/// The profile's bytes. `frames` names the functions around an address, those inlined into others first.
pub(super) fn encode(
    description: &Description<'_>,
    stacks: &[Stack],
    mappings: &[Mapping],
    frames: impl Fn(usize) -> Vec<Frame>,
) -> Vec<u8> {
    let mut tables = Tables::new(mappings);
    for stack in stacks {
        let location_id = stack.addresses.iter().map(|address| tables.location(*address, &frames)).collect();
        let value = stack.values.iter().map(|value| integer(*value)).collect();
        tables.profile.sample.push(Sample { location_id, value });
    }
    tables.profile.sample_type = description.kinds.iter().map(|kind| tables.kind(*kind)).collect();
    let (kind, period) = description.period;
    tables.profile.period_type = Some(tables.kind(kind));
    tables.profile.period = integer(period);
    tables.profile.time_nanos = nanoseconds(SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default());
    tables.profile.duration_nanos = nanoseconds(description.length);
    if !description.comment.is_empty() {
        let comment = tables.text(&description.comment);
        tables.profile.comment.push(comment);
    }
    tables.profile.encode_to_vec()
}

/// The message, and what is in it already by what it stands for.
struct Tables<'a> {
    profile: Profile,
    mappings: &'a [Mapping],
    texts: HashMap<String, i64>,
    functions: HashMap<(i64, i64), u64>,
    locations: HashMap<usize, u64>,
}

impl<'a> Tables<'a> {
    fn new(mappings: &'a [Mapping]) -> Self {
        let mut tables = Self {
            profile: Profile::default(),
            mappings,
            texts: HashMap::new(),
            functions: HashMap::new(),
            locations: HashMap::new(),
        };
        tables.text("");
        for (mapping, id) in mappings.iter().zip(1..) {
            let filename = tables.text(&mapping.file);
            tables.profile.mapping.push(MappingMessage {
                id,
                memory_start: mapping.start,
                memory_limit: mapping.end,
                file_offset: mapping.offset,
                filename,
                ..MappingMessage::default()
            });
        }
        tables
    }

    fn text(&mut self, text: &str) -> i64 {
        if let Some(index) = self.texts.get(text) {
            return *index;
        }
        let index = integer(self.profile.string_table.len() as u64);
        self.texts.insert(text.to_owned(), index);
        self.profile.string_table.push(text.to_owned());
        index
    }

    fn kind(&mut self, Kind(kind, unit): Kind) -> ValueType {
        ValueType { r#type: self.text(kind), unit: self.text(unit) }
    }

    fn location(&mut self, address: usize, frames: impl Fn(usize) -> Vec<Frame>) -> u64 {
        if let Some(id) = self.locations.get(&address) {
            return *id;
        }
        let frames = frames(address);
        let mapping_id = self.mapping_of(address as u64, &frames);
        let line = frames.iter().map(|frame| self.line(frame)).collect();
        let id = self.profile.location.len() as u64 + 1;
        self.profile.location.push(Location { id, mapping_id, address: address as u64, line });
        self.locations.insert(address, id);
        id
    }

    /// The mapping that `address` is in, of which it is then said what `frames` tell; 0 if there is none.
    fn mapping_of(&mut self, address: u64, frames: &[Frame]) -> u64 {
        let found = self.mappings.iter().position(|one| (one.start..one.end).contains(&address));
        let Some(mapping) = found.map(|index| &mut self.profile.mapping[index]) else { return 0 };
        mapping.has_functions |= !frames.is_empty();
        mapping.has_filenames |= frames.iter().any(|frame| !frame.file.is_empty());
        mapping.has_line_numbers |= frames.iter().any(|frame| frame.line > 0);
        mapping.has_inline_frames |= frames.len() > 1;
        mapping.id
    }

    fn line(&mut self, frame: &Frame) -> Line {
        let (name, filename) = (self.text(&frame.function), self.text(&frame.file));
        let next = self.profile.function.len() as u64 + 1;
        let function_id = *self.functions.entry((name, filename)).or_insert(next);
        if function_id == next {
            self.profile.function.push(Function { id: next, name, system_name: name, filename });
        }
        Line { function_id, line: i64::from(frame.line) }
    }
}

fn nanoseconds(length: Duration) -> i64 {
    i64::try_from(length.as_nanos()).unwrap_or(i64::MAX)
}

fn integer(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    impl Profile {
        /// The names of the functions of each sample, the innermost first, and what was counted there.
        pub(in super::super) fn named(&self) -> Vec<(Vec<&str>, &[i64])> {
            let text = |index: i64| &*self.string_table[usize::try_from(index).unwrap()];
            let at = |id: u64| usize::try_from(id).unwrap() - 1;
            let names = |location: &u64| {
                let lines = self.location[at(*location)].line.iter();
                lines.map(|line| text(self.function[at(line.function_id)].name)).collect::<Vec<_>>()
            };
            let named = |sample: &'_ Sample| sample.location_id.iter().flat_map(names).collect();
            self.sample.iter().map(|sample| (named(sample), &*sample.value)).collect()
        }
    }

    #[test]
    fn a_profile_says_what_was_counted_where_and_of_which_file_the_code_is() {
        let mappings = [("/usr/bin/z", 0x1000), ("[vdso]", 0x9000)].map(|(file, start)| Mapping {
            start,
            end: start + 0x1000,
            offset: 0x40,
            file: file.to_owned(),
        });
        let frames = |address| {
            let frame =
                |function: &str, line| Frame { function: function.to_owned(), file: "z.rs".to_owned(), line };
            match address {
                0x1001 => vec![frame("inlined", 7), frame("inner", 70)],
                0x1002 => vec![frame("outer", 8)],
                _ => Vec::new(),
            }
        };
        let stack = |addresses: &[usize], count| Stack {
            addresses: addresses.to_vec(),
            values: vec![count, 10 * count],
        };
        let stacks = [stack(&[0x1001, 0x1002], 3), stack(&[0x1002], 1), stack(&[0x9000, 0x1002], 2)];
        let description = Description {
            kinds: &[Kind("samples", "count"), Kind("cpu", "nanoseconds")],
            period: (Kind("cpu", "nanoseconds"), 10),
            length: Duration::from_secs(1),
            comment: "none was lost".to_owned(),
        };
        let profile = Profile::decode(&*encode(&description, &stacks, &mappings, frames)).unwrap();
        let expected: [(Vec<&str>, &[i64]); 3] = [
            (vec!["inlined", "inner", "outer"], &[3, 30]),
            (vec!["outer"], &[1, 10]),
            (vec!["outer"], &[2, 20]),
        ];
        assert_eq!(profile.named(), expected);
        assert_eq!(profile.string_table[0], "", "what the format demands");
        assert_eq!((profile.period, profile.duration_nanos), (10, 1_000_000_000));
        let text = |index: i64| &*profile.string_table[usize::try_from(index).unwrap()];
        let kinds: Vec<_> =
            profile.sample_type.iter().map(|kind| (text(kind.r#type), text(kind.unit))).collect();
        assert_eq!(kinds, [("samples", "count"), ("cpu", "nanoseconds")]);
        assert_eq!(profile.comment.iter().map(|index| text(*index)).collect::<Vec<_>>(), ["none was lost"]);
        let of: Vec<_> = profile.location.iter().map(|one| (one.address, one.mapping_id)).collect();
        assert_eq!(of, [(0x1001, 1), (0x1002, 1), (0x9000, 2)], "each address once");
        let [code, vdso] = &profile.mapping[..] else { panic!("{:?}", profile.mapping) };
        assert_eq!((text(code.filename), code.memory_start, code.file_offset), ("/usr/bin/z", 0x1000, 0x40));
        assert!(code.has_functions && code.has_line_numbers && code.has_inline_frames);
        assert!(!vdso.has_functions, "pprof looks for what is not named itself");
    }
}
