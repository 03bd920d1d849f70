//! How likely requests fail by themselves, so that a row is blamed only for what chance does not explain.

/// Requests that the estimate looks back on: enough to tell one in thirty, few enough to follow an outage's end.
const LAST: u32 = 32;

/// A row is given up when as many failures in a row would come by chance once in a million rows.
const CHANCE: f64 = 1e-6;

/// The outcomes of the last requests that held no row which had failed before.
#[derive(Clone, Copy, Debug, Default)]
pub struct Odds {
    /// One bit a request, the latest lowest; set for an outage.
    outages: u32,
    known: u32,
}

impl Odds {
    pub fn note(&mut self, is_outage: bool) {
        self.outages = self.outages << 1 | u32::from(is_outage);
        self.known = LAST.min(self.known + 1);
    }

    /// How often a row must fail, others getting through, until it is to blame.
    pub fn failures_needed(&self) -> u32 {
        // Laplace's rule of succession: nothing is certain after a few requests.
        let failing = f64::from(self.outages.count_ones() + 1) / f64::from(self.known + 2);
        (CHANCE.ln() / failing.ln()).ceil() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(outages: impl IntoIterator<Item = bool>) -> u32 {
        let mut odds = Odds::default();
        outages.into_iter().for_each(|is_outage| odds.note(is_outage));
        odds.failures_needed()
    }

    #[test]
    fn the_worse_the_provider_the_more_failures_a_row_may_have() {
        assert_eq!(after([]), 20, "nothing is known");
        assert_eq!(after([false; 100]), 4);
        assert_eq!(after((0..100).map(|n| n % 4 == 0)), 11);
        assert_eq!(after((0..100).map(|n| n % 2 == 0)), 20);
        assert!(after([true; 100]) > 400, "an outage blames nobody");
    }

    #[test]
    fn an_outage_is_forgotten() {
        assert_eq!(after([[true; 50], [false; 50]].concat()), 4);
    }
}
