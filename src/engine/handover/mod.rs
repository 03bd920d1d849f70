//! The hand-over of a partition to its next owner, in the metadata of commits: the fence, and the events settled beyond the
//! position.

mod ahead;
mod fence;
mod replay;
mod settled;

pub use ahead::{SettledAhead, UserKey};
pub use fence::{Fence, Leaving};
pub use settled::SettledList;
