//! Reduce operators that live as long as they are used.

use std::{fmt, sync::Arc};

use collectives_core::{PreMulSum, ReduceOp};

use crate::communicator::CommInner;

/// A reduce operator that multiplies this rank's input by a scalar and then sums.
///
/// Belongs to the communicator that made it
/// ([`Communicator::pre_mul_sum`](crate::Communicator::pre_mul_sum)) and to one element type.
/// Groups and graphs that use it keep it alive; it is destroyed with the last of them.
#[derive(Clone)]
pub struct PreMulSumOp(pub(crate) Arc<OpKeep>);

impl fmt::Debug for PreMulSumOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PreMulSumOp").field(&self.0.handle).finish()
    }
}

/// What the reducing operations of this crate take: a [`ReduceOp`] or a [`PreMulSumOp`].
#[derive(Clone, Debug)]
pub struct Op {
    pub(crate) raw: ReduceOp,
    pub(crate) keep: Option<Arc<OpKeep>>,
}

impl From<ReduceOp> for Op {
    #[inline]
    fn from(raw: ReduceOp) -> Self {
        Self { raw, keep: None }
    }
}

impl From<&PreMulSumOp> for Op {
    fn from(op: &PreMulSumOp) -> Self {
        Self { raw: ReduceOp::PreMulSum(op.0.handle), keep: Some(Arc::clone(&op.0)) }
    }
}

/// Hands an operator back to its communicator when the last user is gone.
pub(crate) struct OpKeep {
    pub(crate) comm: Arc<CommInner>,
    pub(crate) handle: PreMulSum,
}

// SAFETY: the communicator is only kept, and handed back through its lock.
unsafe impl Send for OpKeep {}
// SAFETY: as above.
unsafe impl Sync for OpKeep {}

impl fmt::Debug for OpKeep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OpKeep").field(&self.handle).finish()
    }
}

impl Drop for OpKeep {
    fn drop(&mut self) {
        self.comm.give_back_op(self.handle);
    }
}
