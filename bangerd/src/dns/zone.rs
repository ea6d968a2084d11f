//! From a question and who asks it to what is answered: from the daemon's records of this moment,
//! so that names follow their VMs.

use super::asker::Askers;
use super::message::{About, Verdict};
use crate::vm::Vms;
use crate::vm::error::VmError;
use crate::vm::named::{Claims, Runs};
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
            About::Name(Named::Vm { vm, user }) => {
                let of_user = |vm: &Claims| UserLabel::of(vm.owner.uid, &vm.owner.name) == user;
                let found = self.vms.running_named(&vm).await;
                let found = found.map(|found| found.into_iter().filter(of_user).collect());
                self.known(found, |vm| Verdict::Address(vm.address), asker, askers).await
            }
            About::Address(address) if self.is_ours(address) => {
                let found = self.vms.running_at(address).await.map(|found| found.into_iter().collect());
                // It may have got another address since it was looked for.
                let name = |vm: Runs| {
                    let name = Verdict::Name(dns::name(&vm.name, &vm.owner));
                    if vm.address == address { name } else { Verdict::NoSuchName }
                };
                self.known(found, name, asker, askers).await
            }
            About::Address(_) => Verdict::Refused,
        }
    }

    /// What is told of the first that the asker may know of, and whose owner is still who they
    /// were: a number that was given again keeps its VMs for up to a minute. Of others no more is
    /// read than whose they are.
    async fn known(
        &self,
        found: Result<Vec<Claims>, VmError>,
        tell: impl Fn(Runs) -> Verdict,
        asker: &Asker,
        askers: &Askers,
    ) -> Verdict {
        let known = async {
            for vm in found? {
                let may = dns::may_know(asker, &vm.owner).granted().is_ok();
                if may
                    && askers.name_of(vm.owner.uid).await == *vm.owner.name
                    && let Some(vm) = self.vms.runs(vm).await?
                {
                    return Ok(tell(vm));
                }
            }
            Ok(Verdict::NoSuchName)
        };
        known.await.unwrap_or_else(|error: VmError| {
            tracing::warn!("cannot look up a name: {}", error.message());
            Verdict::Failed
        })
    }

    fn is_ours(&self, address: Ipv4Addr) -> bool {
        self.vms.ctx.config.now().network.contains(address)
    }
}
