//! Taps.

use super::{Answer, Denied, Machine, again};
use crate::fail;
use crate::kernel::{Kernel, Link, LinkKind};
use banger_policy::VmId;
use banger_policy::helper::holding::{self, Refusal, Row, Step, Tap};
use banger_proto::helper::{HelperError, TapIdentity};

/// Kind, name and mark: what only root can make and nobody else could confuse with another VM's.
pub(super) fn is_ours(link: &Link, row: &Row) -> bool {
    link.kind == LinkKind::Tun && row.owns_link(&link.name, &link.alias)
}

impl<K: Kernel> Machine<K> {
    /// Makes the VM's tap, with a route to its guest.
    ///
    /// # Errors
    /// [`HelperError::BadArgument`] for an index outside the network, else the policy's or the
    /// kernel's.
    pub async fn acquire_tap(&self, vm: VmId, owner: u32, index: u16) -> Answer<TapIdentity> {
        let index =
            self.network.index(index.into()).map_err(|_| Denied::new(HelperError::BadArgument, "address-index"))?;
        let address = self.network.guest(index);
        let _turn = self.turn(vm).await?;
        let fresh = self.kernel.fresh()?;
        let step = holding::acquire_tap(self.ledger.borrow().rows(), vm, owner, address, fresh).granted()?;
        let Step::Do(grant) = step else { return self.tap(&vm) };
        self.put(grant.intent().clone())?;
        let row = grant.into_row();
        // An attempt of this very boot may have been neither finished nor undone. Another link of
        // that name keeps it: the kernel refuses a second one.
        self.drop_tap(&row).await?;
        let made = self.kernel.make_tap(&vm.tap_name(), &vm.tap_alias(row.generation), owner, address).await;
        let committed = match made {
            Ok(ifindex) => {
                fail::point("tap-made");
                self.put(row.clone().with_tap(Tap::Held { address, ifindex }))
            }
            Err(error) => Err(error.into()),
        };
        if let Err(denied) = committed {
            // What was made is found again by its intent, now or at the next start.
            if self.drop_tap(&row).await.is_ok() {
                self.abandon(row.without_tap())?;
            }
            return Err(denied);
        }
        self.tap(&vm)
    }

    fn tap(&self, vm: &VmId) -> Answer<TapIdentity> {
        Ok(self.row(vm).as_ref().and_then(TapIdentity::of).ok_or(Refusal::BadState)?)
    }

    /// Removes the VM's tap.
    ///
    /// # Errors
    /// [`HelperError::Busy`] while somebody has it open.
    pub async fn release_tap(&self, vm: VmId, tap: &TapIdentity) -> Answer<()> {
        let _turn = self.turn(vm).await?;
        let row = self.row(&vm);
        let running = self.running(row.as_ref())?;
        let Step::Do(grant) = holding::release_tap(row.as_ref(), tap, running).granted()? else {
            return Ok(());
        };
        let row = grant.into_row();
        self.withdraw(&row)?;
        let result = self.drop_tap(&row).await;
        self.undone(row.clone(), row.without_tap(), result)
    }

    /// Removes the link of a row if it is the row's. The route and the address go with it.
    pub(super) async fn drop_tap(&self, row: &Row) -> Answer<()> {
        let mut tries = 0;
        loop {
            let link = match row.tap {
                Tap::None => None,
                // Not committed: only the mark tells ours from a link that was there before.
                Tap::Intent { .. } => {
                    self.kernel.link_by_name(&row.vm.tap_name()).await?.filter(|link| is_ours(link, row))
                }
                Tap::Held { ifindex, .. } => self.kernel.link_by_index(ifindex).await?,
            };
            let Some(link) = link else { return Ok(()) };
            if !is_ours(&link, row) {
                return Err(Denied::new(HelperError::Quarantined, "tap-changed"));
            }
            if !link.carrier {
                self.kernel.delete_link(link.ifindex).await?;
                fail::point("tap-deleted");
                return Ok(());
            }
            if !again(&mut tries).await {
                return Err(Denied::new(HelperError::Busy, "tap-open"));
            }
        }
    }
}
