//! The ZIP records that an engine file consists of (PKWARE APPNOTE 6.3.10, sections 4.3 and 4.5), as written.
//! All numbers are little endian.

use crate::ALIGNMENT;

pub(crate) const LOCAL: u32 = 0x0403_4b50;
pub(crate) const CENTRAL: u32 = 0x0201_4b50;
pub(crate) const END: u32 = 0x0605_4b50;
pub(crate) const END64: u32 = 0x0606_4b50;
pub(crate) const LOCATOR64: u32 = 0x0706_4b50;

pub(crate) const LOCAL_LEN: usize = 30;
pub(crate) const CENTRAL_LEN: usize = 46;
pub(crate) const END_LEN: usize = 22;
pub(crate) const END64_LEN: usize = 56;
pub(crate) const LOCATOR64_LEN: usize = 20;

/// Extra field with the 64-bit sizes and offset (4.5.3).
pub(crate) const EXTRA_ZIP64: u16 = 0x0001;
/// Extra field whose padding aligns the data that follows it (4.6.11).
pub(crate) const EXTRA_ALIGNMENT: u16 = 0xa11e;

/// Offset of the CRC-32 in a local header.
pub(crate) const LOCAL_CRC_AT: u64 = 14;

/// This value in a 32-bit field says: look in the ZIP64 record.
pub(crate) const IN_ZIP64: u32 = u32::MAX;
/// The same for 16-bit fields.
pub(crate) const IN_ZIP64_SHORT: u16 = u16::MAX;

/// Version needed to extract, times ten: 1.0 for stored entries, 4.5 for ZIP64.
const VERSION_PLAIN: u16 = 10;
const VERSION_ZIP64: u16 = 45;
/// Made on Unix, so that the file mode below counts.
const MADE_BY: u16 = (3 << 8) | VERSION_ZIP64;
/// A regular file, rw-r--r--.
const UNIX_MODE: u32 = 0o100_644 << 16;
/// 1980-01-01, the first day that ZIP knows: the same input makes the same file on any day.
const DOS_DATE: u16 = (1 << 5) | 1;

/// What the headers of one entry say.
pub(crate) struct Header<'a> {
    pub name: &'a str,
    pub crc: u32,
    pub bytes: u64,
    /// Offset of the local header.
    pub offset: u64,
}

#[derive(Default)]
struct Record(Vec<u8>);

impl Record {
    fn u16(mut self, value: u16) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }
    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }
    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }
    fn bytes(mut self, value: &[u8]) -> Self {
        self.0.extend(value);
        self
    }
}

/// `value` for a 32-bit field, or the mark that it is in the ZIP64 record.
fn short(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(IN_ZIP64)
}

fn is_long(value: u64) -> bool {
    short(value) == IN_ZIP64
}

/// The part that local and central headers share, from "version needed" up to the extra field's length.
fn common(record: Record, header: &Header, zip64: bool, extra: usize) -> Record {
    let size = if is_long(header.bytes) { IN_ZIP64 } else { short(header.bytes) };
    record
        .u16(if zip64 { VERSION_ZIP64 } else { VERSION_PLAIN })
        .u16(0) // flags: names are ASCII, no encryption, no data descriptor
        .u16(0) // method: stored
        .u16(0) // time
        .u16(DOS_DATE)
        .u32(header.crc)
        .u32(size)
        .u32(size)
        .u16(header.name.len() as u16) // names are at most 200 bytes
        .u16(extra as u16) // at most 32 bytes of ZIP64 and 4101 of padding
}

/// The local header, padded so that the data after it is aligned.
pub(crate) fn local(header: &Header) -> Vec<u8> {
    let long = is_long(header.bytes);
    let zip64 = if long {
        Record::default().u16(EXTRA_ZIP64).u16(16).u64(header.bytes).u64(header.bytes).0
    } else {
        Vec::new()
    };
    // The padding is an extra field of its own: 4 bytes of head, 2 that repeat the alignment, then zeros.
    let unpadded = header.offset + (LOCAL_LEN + header.name.len() + zip64.len() + 6) as u64;
    let zeros = (unpadded.next_multiple_of(ALIGNMENT) - unpadded) as usize;
    common(Record::default().u32(LOCAL), header, long, zip64.len() + 6 + zeros)
        .bytes(header.name.as_bytes())
        .bytes(&zip64)
        .u16(EXTRA_ALIGNMENT)
        .u16(2 + zeros as u16)
        .u16(ALIGNMENT as u16)
        .bytes(&vec![0; zeros])
        .0
}

/// The entry's record in the central directory.
pub(crate) fn central(header: &Header) -> Vec<u8> {
    let mut long = Record::default();
    if is_long(header.bytes) {
        long = long.u64(header.bytes).u64(header.bytes);
    }
    if is_long(header.offset) {
        long = long.u64(header.offset);
    }
    let extra = match long.0.len() {
        0 => Vec::new(),
        n => Record::default().u16(EXTRA_ZIP64).u16(n as u16).bytes(&long.0).0,
    };
    common(Record::default().u32(CENTRAL).u16(MADE_BY), header, !extra.is_empty(), extra.len())
        .u16(0) // comment
        .u16(0) // disk
        .u16(0) // internal attributes
        .u32(UNIX_MODE)
        .u32(short(header.offset))
        .bytes(header.name.as_bytes())
        .bytes(&extra)
        .0
}

/// The records after the directory of `entries` records that takes `bytes` bytes from `offset`.
pub(crate) fn end(entries: u64, offset: u64, bytes: u64) -> Vec<u8> {
    let count = u16::try_from(entries).unwrap_or(IN_ZIP64_SHORT);
    let mut record = Record::default();
    if is_long(offset) || is_long(bytes) || count == IN_ZIP64_SHORT {
        record = record
            .u32(END64)
            .u64(END64_LEN as u64 - 12)
            .u16(MADE_BY)
            .u16(VERSION_ZIP64)
            .u32(0)
            .u32(0)
            .u64(entries)
            .u64(entries)
            .u64(bytes)
            .u64(offset)
            .u32(LOCATOR64)
            .u32(0)
            .u64(offset + bytes)
            .u32(1);
    }
    record.u32(END).u16(0).u16(0).u16(count).u16(count).u32(short(bytes)).u32(short(offset)).u16(0).0
}
