//! What only the helper decides: what it may do for a VM, given the VM's row in the ledger; the
//! requests to device-mapper and the firewall as bytes. Whoever reads the helper reads this, so
//! `make budgets` counts it with the helper, and fails when another program uses it.

pub mod dm;
pub mod firewall;
pub mod holding;
pub mod record;
pub mod row;
