//! `TensorBoard` event files, written without any library.
//!
//! A file is a sequence of `TFRecord` frames, each holding one `Event` message:
//! `u64 length, u32 masked crc32c(length), bytes, u32 masked crc32c(bytes)`, little endian.
//! Field numbers are those of `tensorboard/compat/proto/event.proto` and `summary.proto`.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};
use crate::files;

/// Writes one event file; every record is a single write, so a killed run leaves a readable file.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// Starts `dir/events.out.tfevents.<run_start_seconds>.semgen<suffix>`; `dir` is made if it is missing.
    ///
    /// `run_start_seconds` counts from 1970. A run resumed within the same second gets a name of its own.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be created.
    pub fn create(dir: &Path, run_start_seconds: u64, suffix: &str) -> Result<Self> {
        files::create_dir(dir)?;
        let name = format!("events.out.tfevents.{run_start_seconds:010}.semgen{suffix}");
        let mut path = dir.join(&name);
        let mut again = 0;
        let file = loop {
            match OpenOptions::new().append(true).create_new(true).open(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                    again += 1;
                    path = dir.join(format!("{name}.{again}"));
                }
                other => break other.map_err(Error::io("create", &path))?,
            }
        };
        let mut writer = Self { path, file };
        writer.record(&version_event(now()))?;
        Ok(writer)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Says that the run continues at `step`: viewers drop what earlier files of the run say about it and later ones.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    pub fn resumed_at(&mut self, step: u64) -> Result<()> {
        self.record(&start_event(now(), step))
    }

    /// One number; `tag` groups by its part before the first `/`.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    pub fn scalar(&mut self, step: u64, tag: &str, value: f32) -> Result<()> {
        self.record(&scalar_event(now(), step, tag, value))
    }

    /// One picture of `width` by `height` pixels, given as the bytes of a PNG file.
    ///
    /// # Errors
    /// [`Error::Failed`] if `png` is not a PNG file, [`Error::Io`] if the file cannot be written.
    pub fn image(&mut self, step: u64, tag: &str, png: &[u8], width: usize, height: usize) -> Result<()> {
        let event = image_event(now(), step, tag, png, width, height)
            .ok_or_else(|| Error::Failed(format!("{}: picture `{tag}` is not a PNG file; encode it before", self.path.display())))?;
        self.record(&event)
    }

    fn record(&mut self, event: &[u8]) -> Result<()> {
        self.file.write_all(&frame(event)).map_err(Error::io("append to", &self.path))
    }
}

/// Seconds since 1970; a clock before that counts as 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// Table of the reflected Castagnoli polynomial 0x1EDC6F41.
const CRC_TABLE: [u32; 256] = {
    let mut table = [0u32; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82F6_3B78 } else { crc >> 1 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

/// CRC-32C (RFC 3720, appendix B.4).
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &b| (crc >> 8) ^ CRC_TABLE[((crc ^ u32::from(b)) & 0xff) as usize])
}

/// The rotated and shifted checksum of the `TFRecord` format.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// One `TFRecord` frame.
fn frame(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(payload.len() + 16);
    out.extend(length);
    out.extend(masked_crc(&length).to_le_bytes());
    out.extend(payload);
    out.extend(masked_crc(payload).to_le_bytes());
    out
}

/// A protobuf message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn integer(mut self, field: u64, value: u64) -> Self {
        self.varint(field << 3);
        self.varint(value);
        self
    }

    fn double(mut self, field: u64, value: f64) -> Self {
        self.varint(field << 3 | 1);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn bytes(mut self, field: u64, value: &[u8]) -> Self {
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
        self
    }

    fn float(mut self, field: u64, value: f32) -> Self {
        self.varint(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
        self
    }
}

/// `Event { wall_time = 1, file_version = 3 }`, the first of every file.
fn version_event(wall_time: f64) -> Vec<u8> {
    Message::default().double(1, wall_time).bytes(3, b"brain.Event:2").0
}

/// `Event { wall_time = 1, step = 2, session_log = 7 }` with `SessionLog { status = 1: START = 1 }`.
fn start_event(wall_time: f64, step: u64) -> Vec<u8> {
    Message::default().double(1, wall_time).integer(2, step).bytes(7, &Message::default().integer(1, 1).0).0
}

/// `Event { wall_time = 1, step = 2, summary = 5 }` with `Summary { value = 1 }` around `value`.
fn summary_event(wall_time: f64, step: u64, value: Message) -> Vec<u8> {
    Message::default().double(1, wall_time).integer(2, step).bytes(5, &Message::default().bytes(1, &value.0).0).0
}

/// `Summary.Value { tag = 1, simple_value = 2 }`.
fn scalar_event(wall_time: f64, step: u64, tag: &str, value: f32) -> Vec<u8> {
    summary_event(wall_time, step, Message::default().bytes(1, tag.as_bytes()).float(2, value))
}

/// `Summary.Value { tag = 1, image = 4 }` with `Image { height = 1, width = 2, colorspace = 3, encoded = 4 }`.
fn image_event(wall_time: f64, step: u64, tag: &str, png: &[u8], width: usize, height: usize) -> Option<Vec<u8>> {
    // PNG colour types, at byte 25 of every file: grey, true colour, palette (decoded as true colour), grey + alpha, true colour + alpha.
    let colour_space = match (png.starts_with(b"\x89PNG\r\n\x1a\n"), png.get(25)?) {
        (true, 0) => 1,
        (true, 2 | 3) => 3,
        (true, 4) => 2,
        (true, 6) => 4,
        _ => return None,
    };
    let image = Message::default().integer(1, height as u64).integer(2, width as u64).integer(3, colour_space).bytes(4, png);
    Some(summary_event(wall_time, step, Message::default().bytes(1, tag.as_bytes()).bytes(4, &image.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_gives_the_known_vectors() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c(&[0xff; 32]), 0x62A8_AB43);
        assert_eq!(crc32c(b""), 0);
    }

    // Made by the protobuf classes of tensorboard 2.21:
    //
    // import struct
    // from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    // from tensorboard.compat.proto.summary_pb2 import Summary
    // from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c as crc
    // png = b"\x89PNG\r\n\x1a\n" + bytes(17) + b"\x02"
    // V = Summary.Value
    // image = Summary.Image(height=2, width=300, colorspace=3, encoded_image_string=png)
    // for e in [Event(wall_time=1.5, file_version="brain.Event:2"),
    //           Event(wall_time=1.5, step=300, session_log=SessionLog(status=SessionLog.START)),
    //           Event(wall_time=1.5, step=7, summary=Summary(value=[V(tag="a/b", simple_value=0.25)])),
    //           Event(wall_time=1.5, step=1, summary=Summary(value=[V(tag="p", image=image)]))]:
    //     p = e.SerializeToString(deterministic=True)
    //     n = struct.pack("<Q", len(p))
    //     print((n + struct.pack("<I", crc(n)) + p + struct.pack("<I", crc(p))).hex())
    #[test]
    fn frames_are_those_of_the_reference_implementation() {
        let png = [&b"\x89PNG\r\n\x1a\n"[..], &[0; 17], &[2]].concat();
        let frames =
            [version_event(1.5), start_event(1.5, 300), scalar_event(1.5, 7, "a/b", 0.25), image_event(1.5, 1, "p", &png, 300, 2).unwrap()];
        let expected = [
            "1800000000000000a37f4b2209000000000000f83f1a0d627261696e2e4576656e743a322a28646c",
            "100000000000000095fbfe1809000000000000f83f10ac023a020801713b788a",
            "19000000000000008bf1082809000000000000f83f10072a0c0a0a0a03612f62150000803e6b4dbd8e",
            concat!(
                "3700000000000000e7e8ca5909000000000000f83f10012a2a0a280a01702223080210ac021803221a89504e470d0a1a0a000000",
                "000000000000000000000000000002c506a1a9"
            ),
        ];
        for (event, expected) in frames.iter().zip(expected) {
            assert_eq!(frame(event).iter().map(|b| format!("{b:02x}")).collect::<String>(), expected);
        }
    }

    #[test]
    fn an_unknown_picture_is_refused() {
        assert!(image_event(0.0, 0, "t", b"GIF89a plus enough bytes to read on", 1, 1).is_none());
        assert!(image_event(0.0, 0, "t", b"\x89PNG\r\n\x1a\n", 1, 1).is_none());
    }
}
