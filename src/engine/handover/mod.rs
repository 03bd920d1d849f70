//! What one owner of a partition hands to the next in the metadata of its commits: the fence, and the events that are settled beyond the position.

mod ahead;
mod fence;
mod replay;
mod settled;

pub use ahead::{SettledAhead, UserKey};
pub use fence::{Fence, Leaving};
pub use settled::SettledList;
