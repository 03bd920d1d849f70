//! Maps each event to the changes that it makes at a provider, and then merges the changes: the later event wins, property by
//! property.
//!
//! This order makes the state at the provider independent of the number of events in a row. If the lane merged the events first,
//! a provider would get a name of two events' parts, or lose a date because a later one cannot be read.

use std::fmt;
use std::sync::Arc;

use crate::event::{Profile, Rules, merge};

/// The rules for reading a lane's events, and the mapping of its provider.
#[derive(Clone)]
pub struct Mapping {
    pub rules: Rules,
    map: Arc<dyn for<'a> Fn(Profile<'a>) -> Profile<'a> + Send + Sync>,
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping").field("rules", &self.rules).finish_non_exhaustive()
    }
}

impl Mapping {
    /// `map` turns one event into the changes that it makes at a provider. The result has the provider's names and values as its
    /// traits, and the same function changes nothing of it.
    pub fn new(rules: Rules, map: impl for<'a> Fn(Profile<'a>) -> Profile<'a> + Send + Sync + 'static) -> Self {
        Mapping { rules, map: Arc::new(map) }
    }

    /// Returns the mapping that leaves every trait as it is, for tests and benches.
    pub fn identity(rules: Rules) -> Self {
        Mapping::new(rules, |event| event)
    }

    /// Returns the changes that these payloads of one user make together, oldest first. A payload that
    /// [`Profile::to_event`] has written of changes is marked `true`, and is not mapped again. Skips a payload that is no
    /// identify event, and returns `None` if there is no other.
    pub fn changes<'a>(&self, payloads: impl Iterator<Item = (&'a [u8], bool)>) -> Option<Profile<'a>> {
        merge(payloads.filter_map(|(payload, is_mapped)| {
            let event = Profile::of(payload, &self.rules)?;
            Some(if is_mapped { event } else { (self.map)(event) })
        }))
    }
}
