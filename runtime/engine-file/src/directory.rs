//! The strict ZIP reader: accepts the layout that [`crate::Writer`] makes and nothing else, so that every byte
//! of the file has one meaning. Works on a slice; allocates no more than one record per directory entry.

use std::collections::HashMap;
use std::fmt::{Display, LowerHex};
use std::ops::Range;

use crate::error::{Error, Result, clip};
use crate::layout::*;
use crate::{ALIGNMENT, MANIFEST, MAX_ENTRIES, name, sniff};

/// One entry of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Located {
    pub name: String,
    /// Where its data is in the file.
    pub data: Range<usize>,
    /// CRC-32 of the data according to the directory.
    pub crc: u32,
}

/// Reads the directory of the engine file `bytes`. The entries come in the order of the file.
pub(crate) fn read(bytes: &[u8]) -> Result<Vec<Located>> {
    if bytes.is_empty() {
        return Err(Error::Empty);
    }
    if u32_at(bytes, 0) != Some(LOCAL) {
        return Err(Error::NotAnEngineFile { looks_like: sniff::looks_like(bytes) });
    }
    let end = end_records(bytes)?;
    let records = central_records(bytes, &end)?;
    if !records.iter().any(|record| record.name == MANIFEST.as_bytes()) {
        let looks_like = sniff::zip_looks_like(records.iter().map(|record| record.name));
        return Err(Error::NotAnEngineFile { looks_like });
    }
    let names = clean_names(&records)?;

    let mut in_file_order: Vec<_> = records.iter().zip(names).collect();
    in_file_order.sort_by_key(|(record, _)| record.offset);
    let mut entries: Vec<Located> = Vec::with_capacity(records.len());
    let mut at = 0; // where the part before this one ends
    for (record, name) in in_file_order {
        let first = entries.last().map(|entry| format!("entry `{}`", entry.name)).unwrap_or_default();
        meets(at, record.offset, end.directory, &first, name)?;
        let data = local_header(bytes, record, name)?;
        if data.end > end.directory {
            let first = format!("entry `{name}`");
            return Err(Error::Overlap {
                first,
                second: "the list of entries".into(),
                at: end.directory as u64,
                end: data.end as u64,
            });
        }
        at = data.end;
        entries.push(Located { name: name.into(), data, crc: record.crc });
    }
    if at != end.directory {
        return Err(Error::Gap { at: at as u64, bytes: (end.directory - at) as u64 });
    }
    Ok(entries)
}

/// What the end records say.
struct End {
    entries: u64,
    /// Where the central directory starts.
    directory: usize,
    /// Where it ends.
    directory_end: usize,
}

/// A record of the central directory, bounds not yet checked against the file.
struct Central<'a> {
    at: usize,
    name: &'a [u8],
    flags: u16,
    method: u16,
    crc: u32,
    compressed: u64,
    bytes: u64,
    offset: u64,
}

fn end_records(bytes: &[u8]) -> Result<End> {
    let at = match bytes.len().checked_sub(END_LEN) {
        Some(at) if u32_at(bytes, at) == Some(END) => at,
        _ => return Err(without_end(bytes)),
    };
    let field = Fields { bytes, at, of: "the end record" };
    field.expect("disk number", 4, 0u16)?;
    field.expect("directory's disk number", 6, 0u16)?;
    let count = field.u16("entry count", 10)?;
    field.expect("entry count of this disk", 8, count)?;
    let size = field.u32("directory size", 12)?;
    let offset = field.u32("directory offset", 16)?;
    field.expect("comment length", 20, 0u16)?;

    let (directory_end, entries, size, offset) =
        if count == IN_ZIP64_SHORT || size == IN_ZIP64 || offset == IN_ZIP64 {
            end64(bytes, at)?
        } else {
            (at, count.into(), size.into(), offset.into())
        };
    if entries > MAX_ENTRIES {
        return Err(Error::TooManyEntries { found: entries, max: MAX_ENTRIES });
    }
    // Comparing with the known position bounds both numbers by the file's size.
    match offset.checked_add(size) {
        Some(sum) if sum == directory_end as u64 => {
            Ok(End { entries, directory: offset as usize, directory_end })
        }
        sum => Err(Error::Structure {
            what: "the end of the directory that the end record announces".into(),
            at: at as u64,
            expected: format!("byte {directory_end}"),
            found: sum.map_or("beyond any file".into(), |sum| format!("byte {sum}")),
        }),
    }
}

/// The ZIP64 end record in front of the end record at `end`: where the directory ends, and entry count, size
/// and offset of the directory.
fn end64(bytes: &[u8], end: usize) -> Result<(usize, u64, u64, u64)> {
    let missing = |found: &str| Error::Structure {
        what: "the ZIP64 end record".into(),
        at: end as u64,
        expected: "in front of the end record, which refers to it".into(),
        found: found.into(),
    };
    let Some(at) = end.checked_sub(END64_LEN + LOCATOR64_LEN) else {
        return Err(missing("outside the file"));
    };
    let field = Fields { bytes, at, of: "the ZIP64 end record" };
    field.expect("signature", 0, END64)?;
    field.expect("length", 4, END64_LEN as u64 - 12)?;
    field.expect("disk number", 16, 0u32)?;
    field.expect("directory's disk number", 20, 0u32)?;
    let count = field.u64("entry count", 32)?;
    field.expect("entry count of this disk", 24, count)?;
    let size = field.u64("directory size", 40)?;
    let offset = field.u64("directory offset", 48)?;
    let locator = Fields { bytes, at: at + END64_LEN, of: "the ZIP64 locator" };
    locator.expect("signature", 0, LOCATOR64)?;
    locator.expect("disk number", 4, 0u32)?;
    locator.expect("offset", 8, at as u64)?;
    locator.expect("number of disks", 16, 1u32)?;
    Ok((at, count, size, offset))
}

fn central_records<'a>(bytes: &'a [u8], end: &End) -> Result<Vec<Central<'a>>> {
    let directory = &bytes[..end.directory_end];
    let mut records = Vec::new();
    let mut at = end.directory;
    for _ in 0..end.entries {
        let field = Fields { bytes: directory, at, of: "the directory record" };
        field.expect("signature", 0, CENTRAL)?;
        let (name_len, extra_len) = (field.u16("name length", 28)?, field.u16("extra length", 30)?);
        field.expect("comment length", 32, 0u16)?;
        field.expect("disk number", 34, 0u16)?;
        let name = field.slice("name", CENTRAL_LEN, name_len.into())?;
        let extra_at = CENTRAL_LEN + usize::from(name_len);
        let extra = field.slice("extra field", extra_at, extra_len.into())?;
        let mut long = Long::read(extra, at + extra_at, false)?;
        let bytes = long.resolve("size", field.u32("size", 24)?)?;
        let compressed = long.resolve("compressed size", field.u32("compressed size", 20)?)?;
        let offset = long.resolve("offset", field.u32("offset", 42)?)?;
        long.done()?;
        records.push(Central {
            at,
            name,
            flags: field.u16("flags", 8)?,
            method: field.u16("method", 10)?,
            crc: field.u32("CRC-32", 16)?,
            compressed,
            bytes,
            offset,
        });
        at += extra_at + usize::from(extra_len);
    }
    if at != end.directory_end {
        return Err(Error::Gap { at: at as u64, bytes: (end.directory_end - at) as u64 });
    }
    Ok(records)
}

/// All names, each clean and used once.
fn clean_names<'a>(records: &[Central<'a>]) -> Result<Vec<&'a str>> {
    let mut seen: HashMap<String, &str> = HashMap::new();
    let mut names = Vec::with_capacity(records.len());
    for record in records {
        let name = name::check(record.name)
            .map_err(|why| Error::UnsafeName { name: clip(String::from_utf8_lossy(record.name)), why })?;
        if let Some(first) = seen.insert(name.to_ascii_lowercase(), name) {
            return Err(Error::Duplicate { first: first.into(), second: name.into() });
        }
        names.push(name);
    }
    Ok(names)
}

/// Checks that an entry at `offset` follows the part that ends at `at`.
fn meets(at: usize, offset: u64, directory: usize, first: &str, second: &str) -> Result<()> {
    let at = at as u64;
    if offset < at {
        Err(Error::Overlap { first: first.into(), second: format!("entry `{second}`"), at: offset, end: at })
    } else if offset > at {
        // Not beyond the directory, however far away the offset claims to be.
        Err(Error::Gap { at, bytes: offset.min(directory as u64) - at })
    } else {
        Ok(())
    }
}

/// Checks the local header that `record` points to against it; gives the range of the data, which is in `bytes`.
fn local_header(bytes: &[u8], record: &Central, name: &str) -> Result<Range<usize>> {
    let entry = || name.to_string();
    if record.flags & 1 != 0 {
        return Err(Error::Encrypted { entry: entry() });
    }
    if record.method != 0 {
        return Err(Error::Compressed { entry: entry(), method: record.method });
    }
    let central = Fields { bytes, at: record.at, of: &format!("the directory record of `{name}`") };
    // Bit 11 says that the name is UTF-8, which a clean name always is.
    if record.flags & !(1 << 11) != 0 {
        return Err(central.wrong("flags", 8, "0 or 0x800", format!("{:#x}", record.flags)));
    }
    if record.compressed != record.bytes {
        return Err(central.wrong("compressed size", 20, record.bytes, record.compressed));
    }

    let at = usize::try_from(record.offset)
        .map_err(|_| central.wrong("offset", 42, "inside the file", record.offset))?;
    let field = Fields { bytes, at, of: &format!("the local header of `{name}`") };
    field.expect("signature", 0, LOCAL)?;
    field.expect("flags", 6, record.flags)?;
    field.expect("method", 8, record.method)?;
    field.expect("CRC-32", 14, record.crc)?;
    let (name_len, extra_len) = (field.u16("name length", 26)?, field.u16("extra length", 28)?);
    let local_name = field.slice("name", LOCAL_LEN, name_len.into())?;
    if local_name != name.as_bytes() {
        let found = clip(String::from_utf8_lossy(local_name));
        return Err(field.wrong("name", LOCAL_LEN, format!("`{name}`"), format!("`{found}`")));
    }
    let extra_at = LOCAL_LEN + local_name.len();
    let extra = field.slice("extra field", extra_at, extra_len.into())?;
    let mut long = Long::read(extra, at + extra_at, true)?;
    for (what, at) in [("size", 22), ("compressed size", 18)] {
        let found = long.resolve(what, field.u32(what, at)?)?;
        if found != record.bytes {
            return Err(field.wrong(what, at, record.bytes, found));
        }
    }
    long.done()?;

    let start = at + extra_at + extra.len();
    if !(start as u64).is_multiple_of(ALIGNMENT) {
        return Err(Error::Misaligned { entry: entry(), offset: start as u64 });
    }
    let data_end = usize::try_from(record.bytes).ok().and_then(|len| start.checked_add(len));
    match data_end {
        Some(end) if end <= bytes.len() => Ok(start..end),
        _ => Err(field.wrong(
            "size",
            22,
            format!("at most {}, the rest of the file", bytes.len() - start),
            record.bytes,
        )),
    }
}

/// The values of a ZIP64 extra field, taken in order.
struct Long<'a> {
    values: &'a [u8],
    at: usize,
}

impl<'a> Long<'a> {
    /// Finds the ZIP64 field in the extra fields at `at`. Local headers may also have padding, all zeros; nothing
    /// else may be there.
    fn read(mut extra: &'a [u8], mut at: usize, local: bool) -> Result<Long<'a>> {
        let mut found: Option<Long> = None;
        while !extra.is_empty() {
            let field = Fields { bytes: extra, at: 0, of: "" };
            let wrong = |what: &str, expected: &str, found: String| Error::Structure {
                what: what.into(),
                at: at as u64,
                expected: expected.into(),
                found,
            };
            let head = |_| wrong("an extra field", "an id and a length", format!("{} bytes", extra.len()));
            let id = field.u16("", 0).map_err(head)?;
            let len = usize::from(field.u16("", 2).map_err(head)?);
            let Some(content) = extra.get(4..4 + len) else {
                let room = extra.len() - 4;
                return Err(wrong("an extra field's length", &format!("at most {room}"), len.to_string()));
            };
            match id {
                EXTRA_ZIP64 if found.is_none() => found = Some(Long { values: content, at: at + 4 }),
                EXTRA_ALIGNMENT if local => {
                    if content.iter().skip(2).any(|&b| b != 0) {
                        return Err(wrong("the padding of a local header", "zeros", "other bytes".into()));
                    }
                }
                _ => {
                    return Err(wrong("an extra field's id", "ZIP64 or padding, once", format!("{id:#06x}")));
                }
            }
            extra = &extra[4 + len..];
            at += 4 + len;
        }
        Ok(found.unwrap_or(Long { values: &[], at }))
    }

    /// `short`, or the next 64-bit value if `short` is the mark for that.
    fn resolve(&mut self, what: &str, short: u32) -> Result<u64> {
        if short != IN_ZIP64 {
            return Ok(short.into());
        }
        let Some((value, rest)) = self.values.split_first_chunk::<8>() else {
            return Err(Error::Structure {
                what: format!("the ZIP64 {what}"),
                at: self.at as u64,
                expected: "8 bytes, because the header refers to it".into(),
                found: format!("{} bytes", self.values.len()),
            });
        };
        self.values = rest;
        self.at += 8;
        Ok(u64::from_le_bytes(*value))
    }

    /// Every value has been used.
    fn done(&self) -> Result<()> {
        if self.values.is_empty() {
            return Ok(());
        }
        Err(Error::Structure {
            what: "a ZIP64 extra field".into(),
            at: self.at as u64,
            expected: "only the values that the header refers to".into(),
            found: format!("{} more bytes", self.values.len()),
        })
    }
}

/// The fields of the record at `at`, with errors that say which record and field.
struct Fields<'a, 'b> {
    bytes: &'a [u8],
    at: usize,
    of: &'b str,
}

impl<'a> Fields<'a, '_> {
    fn wrong(&self, what: &str, at: usize, expected: impl Display, found: impl Display) -> Error {
        Error::Structure {
            what: format!("{what} in {}", self.of),
            at: (self.at + at) as u64,
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    fn slice(&self, what: &str, at: usize, len: usize) -> Result<&'a [u8]> {
        let range = self.at.checked_add(at).and_then(|start| Some(start..start.checked_add(len)?));
        range
            .and_then(|range| self.bytes.get(range))
            .ok_or_else(|| self.wrong(what, at, format!("{len} bytes"), "the end of the file or directory"))
    }

    fn u16(&self, what: &str, at: usize) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array(what, at)?))
    }
    fn u32(&self, what: &str, at: usize) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what, at)?))
    }
    fn u64(&self, what: &str, at: usize) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what, at)?))
    }

    fn array<const N: usize>(&self, what: &str, at: usize) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.slice(what, at, N)?);
        Ok(array)
    }

    /// The field has this value.
    fn expect<T: Number>(&self, what: &str, at: usize, expected: T) -> Result<()> {
        let found = T::read(self, what, at)?;
        if found == expected {
            return Ok(());
        }
        Err(self.wrong(what, at, format!("{expected:#x}"), format!("{found:#x}")))
    }
}

trait Number: PartialEq + LowerHex + Sized {
    fn read(fields: &Fields, what: &str, at: usize) -> Result<Self>;
}
impl Number for u16 {
    fn read(fields: &Fields, what: &str, at: usize) -> Result<Self> {
        fields.u16(what, at)
    }
}
impl Number for u32 {
    fn read(fields: &Fields, what: &str, at: usize) -> Result<Self> {
        fields.u32(what, at)
    }
}
impl Number for u64 {
    fn read(fields: &Fields, what: &str, at: usize) -> Result<Self> {
        fields.u64(what, at)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|array| u32::from_le_bytes(*array))
}

/// Why `bytes`, which start as an engine file, do not end with an end record.
fn without_end(bytes: &[u8]) -> Error {
    // Something appended: as far back as a ZIP reader would look.
    let from = bytes.len().saturating_sub(END_LEN + usize::from(u16::MAX));
    let last = bytes.len().saturating_sub(END_LEN);
    for at in (from..last).rev() {
        if u32_at(bytes, at) == Some(END) && end_records(&bytes[..at + END_LEN]).is_ok() {
            let end = at + END_LEN;
            return Error::Trailing { end: end as u64, extra: (bytes.len() - end) as u64 };
        }
    }
    // Otherwise walk the entries from the front: the part that does not fit is the one the file ends in.
    let has = bytes.len() as u64;
    let mut at = 0usize;
    loop {
        match u32_at(bytes, at) {
            Some(LOCAL) => {}
            Some(CENTRAL | END64 | LOCATOR64 | END) => {
                return Error::Truncated { part: "the list of entries at its end".into(), has, needs: None };
            }
            _ => {
                let part = "or before the list of entries at its end".into();
                return Error::Truncated { part, has, needs: None };
            }
        }
        let Some((name, end)) = claimed_end(bytes, at) else {
            return Error::Truncated { part: "the header of an entry".into(), has, needs: None };
        };
        let part = format!("entry `{}`", clip(String::from_utf8_lossy(name)));
        match usize::try_from(end) {
            // A header is never empty, so this moves forward.
            Ok(end) if end < bytes.len() => at = end,
            Ok(end) if end == bytes.len() => {
                return Error::Truncated { part: "the list of entries at its end".into(), has, needs: None };
            }
            _ => return Error::Truncated { part, has, needs: Some(end) },
        }
    }
}

/// Name and end of the entry whose local header is at `at`, as that header claims.
fn claimed_end(bytes: &[u8], at: usize) -> Option<(&[u8], u64)> {
    let field = Fields { bytes, at, of: "" };
    let (name_len, extra_len) = (field.u16("", 26).ok()?, field.u16("", 28).ok()?);
    let name = field.slice("", LOCAL_LEN, name_len.into()).ok()?;
    let extra_at = LOCAL_LEN + name.len();
    let extra = field.slice("", extra_at, extra_len.into()).ok()?;
    let size = Long::read(extra, 0, true).ok()?.resolve("", field.u32("", 22).ok()?).ok()?;
    let end = (at + extra_at + extra.len()) as u64;
    Some((name, end.checked_add(size)?))
}
