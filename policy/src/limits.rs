//! Limits and defaults, each with its unit and reason.

/// The largest disk, bytes: 128 GiB.
pub const MAX_DISK_BYTES: u64 = 128 << 30;
/// Sizes of root disks are multiples of this, bytes: one block group of ext4 with blocks of 4 KiB.
/// A last group of a few blocks cannot hold its own tables.
pub const ROOT_STEP_BYTES: u64 = 128 << 20;
/// The smallest root disk, bytes: one step.
pub const MIN_ROOT_BYTES: u64 = ROOT_STEP_BYTES;
/// What stays free on the host's disk whenever something is made there, bytes: 512 MiB, for the
/// database, logs, and what VMs that run write to their sparse work disks.
pub const HOST_RESERVE_BYTES: u64 = 512 << 20;
/// The smallest work disk, bytes: room for an ext4 with a journal.
pub const MIN_WORK_DISK_BYTES: u64 = 32 << 20;
/// Root disk when nobody says otherwise, bytes: 8 GiB.
pub const DEFAULT_ROOT_BYTES: u64 = 8 << 30;
/// Work disk when nobody says otherwise, bytes: 8 GiB.
pub const DEFAULT_WORK_DISK_BYTES: u64 = 8 << 30;
/// The most that the contents of an image may have when nobody says otherwise, bytes: 8 GiB.
pub const DEFAULT_BUILD_BYTES: u64 = 8 << 30;
/// Memory when neither flag, configuration nor host says otherwise, MiB.
pub const DEFAULT_MEMORY_MIB: u32 = 2048;
/// The least memory in which a distribution's kernel unpacks an initramfs and starts an init, MiB.
pub const MIN_MEMORY_MIB: u32 = 128;
/// The most memory of one VM, MiB: 512 GiB.
pub const MAX_MEMORY_MIB: u32 = 512 * 1024;
/// vCPUs when neither flag, configuration nor host says otherwise.
pub const DEFAULT_VCPUS: u32 = 2;
/// Firecracker's own limit (`MAX_SUPPORTED_VCPUS`).
pub const MAX_VCPUS: u32 = 32;
/// VMs that may hold kernel objects at a time on one host.
pub const MAX_VMS: u32 = 256;
/// Loop devices of all VMs: two each.
pub const MAX_LOOPS: u32 = 512;
/// How long a guest has to shut down when nobody says otherwise, seconds: systemd gives its
/// services as long.
pub const DEFAULT_STOP_SECONDS: u32 = 90;
/// The shortest such time, seconds. `vm kill` gives none.
pub const MIN_STOP_SECONDS: u32 = 1;
/// The longest, seconds: an hour.
pub const MAX_STOP_SECONDS: u32 = 3600;
/// The stats poll, seconds.
pub const DEFAULT_STATS_POLL_SECONDS: u64 = 10;
/// COW files on one host, of VMs that run or not.
pub const MAX_COWS: usize = 4096;
/// The fewest digits of an id that mean something of another user's, or of everybody's: a name that
/// was mistyped, or is gone, may be digits of an id.
pub const ID_DIGITS_OF_OTHERS: usize = 8;
/// Flows that the guests of one user may have at once, without those that are closed. A kernel
/// with 4 GiB or more keeps 262,144 (`nf_conntrack_max`), an established one for five days and
/// whatever comes after it: with the closed ones, 18 users would fill them together. The kernel
/// looks through the user's flows at each new one, in the time of the VMM that sends it, so there
/// cannot be many more.
pub const FLOWS_OF_USER: u32 = 8192;
/// Flows that the guests of one user may begin in a second, and at once.
pub const NEW_FLOWS_OF_USER: (u64, u32) = (400, 2048);
/// How long a closed flow of a guest is remembered, seconds: a last segment that was lost is sent
/// again within that time.
pub const CLOSED_FLOW_SECONDS: u32 = 10;
/// Flows that the guests of one user may have to one address outside: seven users would take all of
/// [`MASQUERADED`].
pub const FLOWS_TO_ONE: u32 = 2048;
/// The host's ports from which guests' flows leave, the first and the last. No service of the host
/// may have one of them, for a guest would take what is sent to it: see `publish::HIGHEST_PORT`.
/// They lie above the ports of WireGuard (51820) and Tailscale (41641), of which both ends are
/// known.
pub const MASQUERADED: (u16, u16) = (52_000, 65_535);
