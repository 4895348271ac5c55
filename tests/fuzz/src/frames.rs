//! HTTP/2 frames out of a fuzzer's bytes: what is cut up anyhow would nearly always fail by its lengths alone.
//!
//! A frame is written as its type, its flags, its stream's number and the length of its payload, a byte each, and the payload. So one
//! changed byte is one changed frame (RFC 9113 4.1), and a frame may still say anything of itself.

/// What a client says first (RFC 9113 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Payload that carries a request's stream data.
pub const DATA: u8 = 0;
/// Header fields of a request.
pub const HEADERS: u8 = 1;
/// The end of a stream before its time.
pub const RST_STREAM: u8 = 3;
/// A connection's parameters.
pub const SETTINGS: u8 = 4;
/// Asks for a sign of life.
pub const PING: u8 = 6;
/// More room for data.
pub const WINDOW_UPDATE: u8 = 8;
/// More header fields.
pub const CONTINUATION: u8 = 9;

/// Flag of DATA and HEADERS: the stream's last frame.
pub const END_STREAM: u8 = 1;
/// Flag of HEADERS and CONTINUATION: the last of the fields.
pub const END_HEADERS: u8 = 4;

/// A frame as a seed writes it. A payload of more than 255 bytes is cut.
pub fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let payload = &payload[..payload.len().min(255)];
    let length = u8::try_from(payload.len()).unwrap_or(u8::MAX);
    [&[kind, flags, stream, length][..], payload].concat()
}

/// The frames of `input` as they go over the wire; of a last one that is incomplete, what there is, as a peer that breaks off leaves it.
pub fn wire(input: &[u8]) -> Vec<u8> {
    let mut wire = Vec::with_capacity(input.len() * 2);
    let mut rest = input;
    while let Some((&[kind, flags, stream, length], tail)) = rest.split_first_chunk::<4>() {
        let payload = &tail[..tail.len().min(usize::from(length))];
        wire.extend([0, 0, length, kind, flags, 0, 0, 0, stream]);
        wire.extend(payload);
        rest = &tail[payload.len()..];
    }
    wire
}

/// The fields of a CONNECT request, none of them compressed (RFC 7541 6.2.2).
pub fn connect(authority: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let text =
        |text: &str| [&[u8::try_from(text.len().min(126)).unwrap_or_default()][..], text.as_bytes()].concat();
    let mut block = [vec![0x02], text("CONNECT"), vec![0x01], text(authority)].concat();
    for (name, value) in headers {
        block.push(0);
        block.extend(text(name));
        block.extend(text(value));
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_have_the_form_of_the_rfc_and_a_broken_one_breaks_off() {
        let input = [frame(PING, 0, 0, b"12345678"), frame(HEADERS, END_HEADERS, 1, b"abc")].concat();
        let expected = b"\0\0\x08\x06\0\0\0\0\x0012345678\0\0\x03\x01\x04\0\0\0\x01abc";
        assert_eq!(wire(&input), expected);
        assert_eq!(wire(&input[..input.len() - 1]), expected[..expected.len() - 1]);
    }
}
