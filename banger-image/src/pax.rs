//! PAX extended headers (POSIX.1-2017, `pax`, "pax Extended Header") as image builders write them.
//!
//! Records are split by their declared length, never at newlines: a file capability is a binary
//! value that may contain one. The `tar` crate splits at newlines, which is why this is ours.

/// What the extended headers in front of an entry say about it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pax {
    /// Whether records are read as GNU tar reads them, and not as Go does it.
    pub(crate) of_gnu: bool,
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) linkpath: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<i64>,
    pub(crate) gid: Option<i64>,
    pub(crate) mtime: Option<(i64, u32)>,
    pub(crate) devmajor: Option<u64>,
    pub(crate) devminor: Option<u64>,
    /// Name and value as in the archive, in order of appearance; ACLs of star and GNU tar as text.
    pub(crate) xattrs: Vec<(String, Vec<u8>)>,
    pub(crate) acl_access: Option<Vec<u8>>,
    pub(crate) acl_default: Option<Vec<u8>>,
    pub(crate) sparse: Sparse,
    /// For a warning: the first record that is passed over and should not be, and why.
    pub(crate) odd: Option<String>,
}

/// What GNU tar says of a sparse file, in its formats 0.0, 0.1 and 1.0 ("Storing Sparse Files" in
/// its manual).
#[derive(Clone, Debug, Default)]
pub(crate) struct Sparse {
    /// Of the map's format; absent before 1.0.
    pub(crate) version: Option<(u64, u64)>,
    /// The file's own name: the header has another one.
    pub(crate) name: Option<Vec<u8>>,
    /// Of the file, bytes.
    pub(crate) size: Option<u64>,
    /// Offsets and lengths, one after the other.
    pub(crate) map: Vec<u64>,
    /// Whether any record said that the file is sparse.
    pub(crate) any: bool,
}

/// Keys that Go's reader of tar does not know, and so neither docker nor containerd does: what is
/// said there means nothing in a layer.
const PASSED_OVER_BY_GO: [&str; 3] = ["SCHILY.acl.", "LIBARCHIVE.", "RHT."];

/// Numbers that a sparse map in headers may have: more than fit a header of ours.
const MAX_MAP: usize = 1 << 17;

/// Why a header is not a PAX header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

impl Pax {
    /// Adds the records of one extended header.
    ///
    /// # Errors
    /// [`Malformed`] for a record without length, `=` or newline, or a number that is none.
    pub(crate) fn extend(&mut self, data: &[u8]) -> Result<(), Malformed> {
        let mut libarchive = Vec::new();
        for record in Records(data) {
            let (key, value) = record?;
            let Ok(key) = std::str::from_utf8(key) else {
                self.pass_over(key, "is not UTF-8");
                continue;
            };
            if !self.of_gnu && PASSED_OVER_BY_GO.iter().any(|space| key.starts_with(space)) {
                continue;
            }
            match key {
                // No value: the header's own field counts (POSIX.1-2017), whatever a global header
                // has said.
                _ if value.is_empty() && self.unset(key) => {}
                "path" => self.path = self.text(value),
                "linkpath" => self.linkpath = self.text(value),
                "size" => self.size = Some(number(value)?),
                "uid" => self.uid = Some(signed(value)?),
                "gid" => self.gid = Some(signed(value)?),
                "SCHILY.devmajor" => self.devmajor = Some(number(value)?),
                "SCHILY.devminor" => self.devminor = Some(number(value)?),
                "mtime" => self.mtime = Some(time(value, self.of_gnu)?),
                // GNU tar and star write the label without its NUL, the kernel keeps it with one.
                "RHT.security.selinux" => {
                    let mut value = value.to_vec();
                    if value.last() != Some(&0) {
                        value.push(0);
                    }
                    self.set_xattr("security.selinux", &value);
                }
                "SCHILY.acl.access" => self.acl_access = Some(value.to_vec()),
                "SCHILY.acl.default" => self.acl_default = Some(value.to_vec()),
                "hdrcharset" if value != b"BINARY" && value != b"ISO-IR 10646 2000 UTF-8" => {
                    self.pass_over(key.as_bytes(), "is not heeded: names are taken as they are");
                }
                _ => {
                    if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                        let name = if self.of_gnu { decoded(name) } else { name.to_owned() };
                        self.set_xattr(&name, value);
                    } else if let Some(word) = key.strip_prefix("GNU.sparse.") {
                        self.sparse.record(word, value)?;
                    } else if let Some(name) = key.strip_prefix("LIBARCHIVE.xattr.") {
                        libarchive.push((name.to_owned(), value.to_vec()));
                    }
                    // Everything else (atime, comment, uname, LIBARCHIVE.creationtime ...) does not
                    // change what a guest sees.
                }
            }
        }
        // bsdtar writes each attribute in both forms: the other one needs no decoding.
        if self.xattrs.is_empty() {
            for (name, value) in libarchive {
                match (percent(&name), base64(&value)) {
                    (Some(name), Some(value)) => self.set_xattr(&name, &value),
                    // As bsdtar does it; GNU tar heeds none of them.
                    _ => self.pass_over(name.as_bytes(), "is no attribute as libarchive encodes it"),
                }
            }
        }
        Ok(())
    }

    /// Takes back what was said before; false for what has no field in a header.
    fn unset(&mut self, key: &str) -> bool {
        match key {
            "path" => self.path = None,
            "linkpath" => self.linkpath = None,
            "size" => self.size = None,
            "uid" => self.uid = None,
            "gid" => self.gid = None,
            "mtime" => self.mtime = None,
            "SCHILY.devmajor" => self.devmajor = None,
            "SCHILY.devminor" => self.devminor = None,
            "hdrcharset" => {}
            _ => return false,
        }
        true
    }

    /// Whether anything in it changes what a guest sees.
    pub(crate) fn says_something(&self) -> bool {
        self.path.is_some()
            || self.linkpath.is_some()
            || self.size.is_some()
            || self.uid.is_some()
            || self.gid.is_some()
            || self.mtime.is_some()
            || !self.xattrs.is_empty()
            || self.acl_access.is_some()
            || self.acl_default.is_some()
            || self.sparse.any
            || self.odd.is_some()
    }

    fn set_xattr(&mut self, name: &str, value: &[u8]) {
        self.xattrs.retain(|(old, _)| old != name);
        self.xattrs.push((name.to_owned(), value.to_vec()));
    }

    fn pass_over(&mut self, key: &[u8], why: &str) {
        self.odd.get_or_insert_with(|| format!("the PAX record \"{}\" {why}", super::names::printable(key)));
    }

    /// A name, which GNU tar ends at the first NUL. Go refuses one that has any.
    fn text(&self, value: &[u8]) -> Option<Vec<u8>> {
        let end = value.iter().position(|byte| *byte == 0).filter(|_| self.of_gnu).unwrap_or(value.len());
        value.get(..end).filter(|text| !text.is_empty()).map(<[u8]>::to_vec)
    }
}

impl Sparse {
    fn record(&mut self, word: &str, value: &[u8]) -> Result<(), Malformed> {
        self.any = true;
        match word {
            "major" => self.version = Some((number(value)?, self.version.map_or(0, |(_, minor)| minor))),
            "minor" => self.version = Some((self.version.map_or(0, |(major, _)| major), number(value)?)),
            "name" => self.name = value.split(|byte| *byte == 0).next().map(<[u8]>::to_vec),
            "size" | "realsize" => self.size = Some(number(value)?),
            "offset" | "numbytes" => self.map.push(number(value)?),
            "map" => self.map = value.split(|byte| *byte == b',').map(number).collect::<Result<_, _>>()?,
            // How many pieces there are shows by itself.
            _ => {}
        }
        if self.map.len() > MAX_MAP { Err(Malformed("a sparse map of more than 65536 pieces")) } else { Ok(()) }
    }
}

/// The name of an attribute as GNU tar writes it: a key of PAX ends at its first `=`.
pub(crate) fn encoded(name: &str) -> String {
    name.replace('%', "%25").replace('=', "%3D")
}

/// The inverse of [`encoded`]. GNU tar leaves every other `%` as it is.
fn decoded(name: &str) -> String {
    name.replace("%3D", "=").replace("%25", "%")
}

/// `%41` for `A` (RFC 3986 section 2.1), as libarchive encodes names.
fn percent(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        rest = after;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
    }
    String::from_utf8(bytes).ok()
}

/// RFC 4648 section 4; libarchive leaves the padding out.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let (mut bits, mut held) = (0_u32, 0_u32);
    for symbol in text.iter().take_while(|symbol| **symbol != b'=') {
        let value = match symbol {
            b'A'..=b'Z' => symbol - b'A',
            b'a'..=b'z' => symbol - b'a' + 26,
            b'0'..=b'9' => symbol - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 & 0xffff | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push(u8::try_from(bits >> held & 0xff).ok()?);
        }
    }
    Some(bytes)
}

/// Key and value.
type Record<'a> = (&'a [u8], &'a [u8]);

/// `length SP key=value LF`, the length counting all of it.
struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        // Some writers pad with NUL.
        if self.0.iter().all(|b| *b == 0) {
            return None;
        }
        let parsed = record(self.0);
        self.0 = parsed.as_ref().map_or(&[][..], |(_, rest)| *rest);
        Some(parsed.map(|(record, _)| record))
    }
}

/// The first record, and what is behind it.
fn record(data: &[u8]) -> Result<(Record<'_>, &[u8]), Malformed> {
    let space = data.iter().take(20).position(|b| *b == b' ').ok_or(Malformed("a PAX record without length"))?;
    let (digits, _) = data.split_at(space);
    let length = usize::try_from(number(digits)?).map_err(|_| Malformed("a PAX record that is too long"))?;
    let whole = data.get(..length).ok_or(Malformed("a PAX record longer than its header"))?;
    let body = whole.get(space + 1..).ok_or(Malformed("a PAX record with a wrong length"))?;
    let body = body.strip_suffix(b"\n").ok_or(Malformed("a PAX record that does not end in a newline"))?;
    let equals = body.iter().position(|b| *b == b'=').ok_or(Malformed("a PAX record without `=`"))?;
    let (key, value) = body.split_at(equals);
    Ok(((key, value.get(1..).unwrap_or_default()), data.get(length..).unwrap_or_default()))
}

fn number(digits: &[u8]) -> Result<u64, Malformed> {
    std::str::from_utf8(digits)
        .ok()
        .filter(|text| text.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|text| text.parse().ok())
        .ok_or(Malformed("a PAX number that is none"))
}

fn signed(text: &[u8]) -> Result<i64, Malformed> {
    let (negative, digits) = text.strip_prefix(b"-").map_or((false, text), |digits| (true, digits));
    let number = i64::try_from(number(digits)?).map_err(|_| Malformed("a PAX number that is too large"))?;
    Ok(if negative { -number } else { number })
}

/// `[-]seconds[.fraction]`; digits beyond nanoseconds are cut. `of_gnu`: up to the first character
/// that belongs to none of that, as Python's `1e-05` for a hundred-thousandth.
fn time(value: &[u8], of_gnu: bool) -> Result<(i64, u32), Malformed> {
    const BAD: Malformed = Malformed("a PAX time that is none");
    let digits = |text: &'_ [u8]| text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (negative, text) = value.strip_prefix(b"-").map_or((false, value), |rest| (true, rest));
    let (whole, rest) = text.split_at(digits(text));
    let after = rest.strip_prefix(b".").unwrap_or(rest);
    let (fraction, rest) = after.split_at(if after.len() < rest.len() { digits(after) } else { 0 });
    if whole.is_empty() || !of_gnu && !rest.is_empty() {
        return Err(BAD);
    }
    let seconds = i64::try_from(number(whole)?).map_err(|_| BAD)?;
    let nine: Vec<u8> = fraction.iter().chain(b"000000000").take(9).copied().collect();
    let nanos = u32::try_from(number(&nine)?).map_err(|_| BAD)?;
    Ok(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        // -1.25 is 0.75 s after -2.
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use proptest::prelude::*;

    /// A record with its own length, as writers compute it.
    fn rec(key: &str, value: &[u8]) -> Vec<u8> {
        let rest = key.len() + value.len() + 3;
        let length = (1..).find(|digits| (rest + digits).to_string().len() == *digits).map(|d| rest + d).unwrap();
        [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
    }

    fn parse(data: &[u8]) -> Result<Pax, Malformed> {
        let mut pax = Pax { of_gnu: true, ..Pax::default() };
        pax.extend(data)?;
        Ok(pax)
    }

    #[test]
    fn binary_values_with_newlines_are_kept() {
        let capability = b"\x01\0\0\x02\n\x0a\0\0\0=\0\0";
        let data = [rec("SCHILY.xattr.security.capability", capability), rec("path", b"bin/ping")].concat();
        let pax = parse(&data).unwrap();
        assert_eq!(pax.xattrs, [("security.capability".to_owned(), capability.to_vec())]);
        assert_eq!(pax.path.unwrap(), b"bin/ping");
    }

    #[test]
    fn numbers_and_times() {
        let data = [rec("size", b"9000000000"), rec("uid", b"4294967294"), rec("mtime", b"12.0345678919")].concat();
        let pax = parse(&data).unwrap();
        assert_eq!((pax.size, pax.uid, pax.mtime), (Some(9_000_000_000), Some(4_294_967_294), Some((12, 34_567_891))));
        for (text, time_of_both) in
            [("-1.25", (-2, 750_000_000)), ("-3", (-3, 0)), ("7.", (7, 0)), ("1.5000000019", (1, 500_000_001))]
        {
            assert_eq!([false, true].map(|of_gnu| time(text.as_bytes(), of_gnu)), [Ok(time_of_both); 2], "{text}");
        }
        for (text, of_gnu) in [("1e-05", (1, 0)), ("1.5e9", (1, 500_000_000)), ("3 s", (3, 0)), ("4.x", (4, 0))] {
            assert_eq!(time(text.as_bytes(), true), Ok(of_gnu), "{text}");
            assert!(time(text.as_bytes(), false).is_err(), "Go refuses it: {text}");
        }
        for text in ["", "--1", "x", "-", ".5", "-.5", "99999999999999999999"] {
            assert!(time(text.as_bytes(), true).is_err(), "{text}");
        }
    }

    #[test]
    fn names_of_attributes_survive_their_encoding() {
        for name in ["user.a=b", "user.a%3Db", "user.%253D", "user.=%=", "user.plain"] {
            assert!(!encoded(name).contains('='), "{name}");
            assert_eq!(decoded(&encoded(name)), name);
        }
        assert_eq!(decoded("user.%41%3d"), "user.%41%3d");
    }

    #[test]
    fn an_empty_value_leaves_the_field_to_the_header() {
        let data = [rec("uid", b"7"), rec("mtime", b"12"), rec("uid", b""), rec("path", b""), rec("mtime", b"")];
        let pax = parse(&data.concat()).unwrap();
        assert!(!pax.says_something(), "{pax:?}");
        let kept = parse(&rec("SCHILY.xattr.user.empty", b"")).unwrap();
        assert_eq!(kept.xattrs, [("user.empty".to_owned(), Vec::new())]);
    }

    #[test]
    fn attributes_as_libarchive_writes_them() {
        let both = [rec("LIBARCHIVE.xattr.user.x", b"djE="), rec("SCHILY.xattr.user.x", b"v2")].concat();
        assert_eq!(parse(&both).unwrap().xattrs, [("user.x".to_owned(), b"v2".to_vec())]);
        let alone = parse(&rec("LIBARCHIVE.xattr.user.a%3db%25", b"AP/+djE")).unwrap();
        assert_eq!(alone.xattrs, [("user.a=b%".to_owned(), b"\0\xff\xfev1".to_vec())]);
        let broken = parse(&rec("LIBARCHIVE.xattr.user.x", b"d!E=")).unwrap();
        assert!(broken.xattrs.is_empty() && broken.odd.unwrap().contains("user.x"));
        assert!(parse(&rec("comment", b"harmless")).unwrap().odd.is_none());
    }

    #[test]
    fn sparse_maps_of_all_formats() {
        let old = [
            rec("GNU.sparse.size", b"9"),
            rec("GNU.sparse.numblocks", b"2"),
            rec("GNU.sparse.offset", b"0"),
            rec("GNU.sparse.numbytes", b"2"),
            rec("GNU.sparse.offset", b"7"),
            rec("GNU.sparse.numbytes", b"1"),
        ]
        .concat();
        let newer =
            [rec("GNU.sparse.size", b"9"), rec("GNU.sparse.name", b"n"), rec("GNU.sparse.map", b"0,2,7,1")].concat();
        for (data, name) in [(old, None), (newer, Some(b"n".to_vec()))] {
            let sparse = parse(&data).unwrap().sparse;
            assert_eq!((sparse.size, sparse.map, sparse.name, sparse.version), (Some(9), vec![0, 2, 7, 1], name, None));
        }
        let newest = [rec("GNU.sparse.major", b"1"), rec("GNU.sparse.minor", b"0"), rec("GNU.sparse.realsize", b"9")];
        let newest = parse(&newest.concat()).unwrap().sparse;
        assert_eq!((newest.version, newest.size, newest.any), (Some((1, 0)), Some(9), true));
        assert!(parse(&rec("GNU.sparse.map", b"0,x")).is_err());
    }

    #[test]
    fn malformed_records_are_errors() {
        for bad in [&b"x"[..], b"5 a=b", b"99 a=b\n", b"3 a=b\n", b"6 ab \n", b"18446744073709551616 a=b\n", b"1 a=b\n"]
        {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn parsing_is_total_and_keeps_values(value in proptest::collection::vec(any::<u8>(), 0..300), junk in any::<Vec<u8>>()) {
            let pax = parse(&rec("SCHILY.xattr.user.v", &value)).unwrap();
            prop_assert_eq!(&pax.xattrs[0].1, &value);
            let _ = parse(&junk);
        }
    }
}
