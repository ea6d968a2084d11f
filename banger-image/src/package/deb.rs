//! A Debian package: an `ar` archive (deb(5), ar(5)) whose member `data.tar.*` has the files.

use crate::source::Window;

pub(super) const MAGIC: &[u8] = b"!<arch>\n";
/// Name 16, time 12, owner 6, group 6, mode 8, size 10, end 2.
const HEADER: usize = 60;
/// A package has three members, or a few more.
const MAX_MEMBERS: usize = 64;

/// The packed tar of the package's files.
pub(super) fn data(package: &Window) -> Result<Window, &'static str> {
    let mut at = MAGIC.len() as u64;
    for _ in 0..MAX_MEMBERS {
        let mut header = [0; HEADER];
        package.read_exact_at(&mut header, at).map_err(|_| "it has no data.tar, or ends before it")?;
        let field = |from: usize, to: usize| header.get(from..to).unwrap_or_default().trim_ascii_end();
        if !header.ends_with(b"`\n") {
            return Err("a member of it has no header");
        }
        let size = std::str::from_utf8(field(48, 58)).ok().and_then(|text| text.parse::<u64>().ok());
        let size = size.ok_or("the size of a member is no number")?;
        let start = at + HEADER as u64;
        let member = package.part(start, size).ok_or("it ends inside a member")?;
        // Some writers end names with a slash.
        let name = field(0, 16);
        if name.strip_suffix(b"/").unwrap_or(name).starts_with(b"data.tar") {
            return Ok(member);
        }
        at = start.checked_add(size.next_multiple_of(2)).ok_or("the size of a member is impossible")?;
    }
    Err("it has no data.tar")
}
