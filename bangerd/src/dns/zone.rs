//! From a question and who asks it to what is answered: from the daemon's records of this moment,
//! so that names follow their VMs.

use super::asker::Askers;
use super::message::{About, Verdict};
use crate::vm::Vms;
use crate::vm::named::Runs;
use banger_policy::dns::{self, Asker, Named, UserLabel};
use std::net::Ipv4Addr;
use std::sync::Arc;

#[derive(Debug)]
pub(super) struct Zone {
    vms: Arc<Vms>,
}

impl Zone {
    pub(super) fn new(vms: Arc<Vms>) -> Self {
        Self { vms }
    }

    /// A name that is another user's, of a VM that does not run, or nobody's, is all the same:
    /// there is no such name.
    pub(super) async fn answer(&self, about: About, asker: &Asker, askers: &Askers) -> Verdict {
        match about {
            About::Name(Named::Outside) => Verdict::Refused,
            // That there is a user says the user database, and not DNS.
            About::Name(Named::Above) => Verdict::Nothing,
            About::Name(Named::Nothing) => Verdict::NoSuchName,
            About::Name(Named::Vm { vm, user }) => match self.vms.running_named(&vm).await {
                Ok(found) => {
                    let of_user = |vm: &Runs| UserLabel::of(vm.owner.uid, &vm.owner.name) == user;
                    let found = self.known(found.into_iter().filter(of_user), asker, askers).await;
                    found.map_or(Verdict::NoSuchName, |vm| Verdict::Address(vm.address))
                }
                Err(error) => failed(&error),
            },
            About::Address(address) if self.is_ours(address) => match self.vms.running_at(address).await {
                Ok(found) => {
                    let found = self.known(found.into_iter(), asker, askers).await;
                    found.map_or(Verdict::NoSuchName, |vm| Verdict::Name(dns::name(&vm.name, &vm.owner)))
                }
                Err(error) => failed(&error),
            },
            About::Address(_) => Verdict::Refused,
        }
    }

    /// The first that the asker may know of, and whose owner is still who they were: a number that
    /// was given again keeps its VMs for up to a minute.
    async fn known(&self, found: impl Iterator<Item = Runs>, asker: &Asker, askers: &Askers) -> Option<Runs> {
        for vm in found {
            let may = dns::may_know(asker, &vm.owner).granted().is_ok();
            if may && askers.name_of(vm.owner.uid).await == *vm.owner.name {
                return Some(vm);
            }
        }
        None
    }

    fn is_ours(&self, address: Ipv4Addr) -> bool {
        self.vms.ctx.config.now().network.contains(address)
    }
}

fn failed(error: &crate::vm::error::VmError) -> Verdict {
    tracing::warn!("cannot look up a name: {}", error.message());
    Verdict::Failed
}
