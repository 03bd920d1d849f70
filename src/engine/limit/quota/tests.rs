//! Tests of one limit: waits after a hand-over, bursts, and the bound of every window.

use super::*;
use crate::engine::limit::LastOwner;
use crate::engine::testing::start;

const TIMEOUT: Duration = Duration::from_secs(10);
const SESSION: Duration = Duration::from_secs(45);

fn limit() -> Quota {
    let mut limit = Quota::new(Some(1200), 100, TIMEOUT, SESSION);
    limit.resize(4, start());
    limit
}

fn id(partition: i32) -> PartitionId {
    PartitionId { topic: 0, partition }
}

fn clean(wait: Duration) -> Former {
    Former::Owner(LastOwner { age: Duration::ZERO, wait: Some(wait), counts: Some(WINDOW) })
}

#[test]
fn a_gained_share_waits_as_long_as_its_last_owner_says_whatever_the_batch_of_this_one() {
    let now = start();
    let fresh =
        |wait| Former::Owner(LastOwner { age: Duration::from_secs(1), wait, counts: Some(Duration::from_secs(115)) });
    for wait in [3, 60] {
        let wait = Duration::from_secs(wait);
        assert_eq!(limit().gain(id(0), fresh(Some(wait)), now), now + wait);
    }
    let silent = limit().gain(id(0), fresh(None), now);
    assert_eq!(silent, now + WINDOW + TIMEOUT, "a version that said nothing may have sent all that there was");
}

#[test]
fn an_owner_that_says_nothing_more_is_waited_for_until_its_burst_is_made_up_for_and_its_requests_have_ended() {
    // 100 rows at 1,200 a minute take five seconds, and a thousandth more for safety.
    let burst = limit().longest() - TIMEOUT;
    assert!(burst >= Duration::from_secs(5) && burst <= Duration::from_millis(5010), "{burst:?}");
    assert_eq!(Quota::new(None, 100, TIMEOUT, SESSION).longest(), TIMEOUT, "no limit, no burst");
    assert_eq!(limit().hearsay(), burst + TIMEOUT + SESSION + SESSION / 3);
}

#[test]
fn a_share_is_free_at_once_when_its_last_owner_can_have_nothing_in_the_window() {
    let now = start();
    let aged = |age, counts| Former::Owner(LastOwner { age: Duration::from_secs(age), wait: Some(SESSION), counts });
    // A session of 120 s, a timeout of 10 s, the window, and ten seconds of clock skew and commit age.
    let slow = Some(Duration::from_secs(190));
    assert_eq!(limit().gain(id(0), aged(199, slow), now), now + SESSION, "it may have sent without the broker");
    assert_eq!(limit().gain(id(0), aged(201, slow), now), now);
    assert_eq!(limit().gain(id(0), aged(124, None), now), now + SESSION, "this one's session stands in");
    assert_eq!(limit().gain(id(0), aged(126, None), now), now);
}

#[test]
fn a_share_that_is_handed_on_falls_as_the_next_owners_rises() {
    let now = start();
    let mut old = limit();
    (0..4).for_each(|partition| {
        old.gain(id(partition), Former::None, now);
    });
    assert_eq!(old.bound(now), 1200);
    old.hand_on(id(0), now);
    let mut new = limit();
    let usable_at = new.gain(id(0), clean(Duration::ZERO), now);
    for second in 0..=70 {
        let at = now + Duration::from_secs(second);
        assert!(old.bound(at) + new.bound(at) <= 1200, "{second} s: {} and {}", old.bound(at), new.bound(at));
    }
    let half = usable_at + WINDOW / 2;
    assert_eq!((old.bound(now + WINDOW / 2), new.bound(half)), (1050, 150));
    assert_eq!((old.bound(now + WINDOW), new.bound(usable_at + WINDOW)), (900, 300));
}

#[test]
fn a_new_partitions_share_starts_with_nothing_and_rises_as_the_others_fall_in_any_order_of_the_news() {
    let now = start();
    for late in [0, 3, 45] {
        let mut old = limit();
        (0..4).for_each(|partition| {
            old.gain(id(partition), Former::None, now);
        });
        let mut new = limit();
        new.resize(8, now);
        let usable_at = (4..8).map(|n| new.gain(id(n), Former::Others(Duration::ZERO), now)).max().expect("four");
        let heard_at = now + Duration::from_secs(late);
        for second in 0..=200 {
            let at = now + Duration::from_secs(second);
            if second == late {
                old.resize(8, at);
            }
            let (old, new) = (old.bound(at), new.bound(at));
            assert!(old + new <= 1200, "{second} s, heard after {late}: {old} and {new}");
        }
        assert_eq!((old.bound(heard_at + WINDOW), new.bound(usable_at + WINDOW)), (600, 600));
    }
}

#[test]
fn a_new_partitions_share_waits_for_owners_of_another_release_that_hear_of_it_later_than_this_one_would() {
    let now = start();
    let own = limit().hearsay();
    for (others, waits) in [(Duration::ZERO, own), (own * 2, own * 2)] {
        let mut limit = limit();
        limit.resize(8, now);
        assert_eq!(limit.gain(id(4), Former::Others(others), now), now + waits);
    }
}

#[test]
fn a_replica_that_gains_as_many_new_partitions_as_it_gives_up_shares_goes_on_as_before() {
    let now = start();
    let mut limit = limit();
    (0..2).for_each(|partition| {
        limit.gain(id(partition), Former::None, now);
    });
    assert_eq!(limit.bound(now), 600);
    limit.resize(8, now);
    assert_eq!([4, 5].map(|n| limit.gain(id(n), Former::Others(Duration::ZERO), now)), [now, now]);
    for second in 0..70 {
        assert_eq!(limit.bound(now + Duration::from_secs(second)), 600);
    }
    assert!(limit.gain(id(6), Former::Others(Duration::ZERO), now) > now, "this one's share is still another's");
}

#[test]
fn a_new_partition_rises_with_the_share_that_it_comes_from_also_some_seconds_after_the_total_is_known() {
    let now = start();
    let seconds = Duration::from_secs;
    let last = LastOwner { age: seconds(5), wait: Some(seconds(10)), counts: None };
    let [mut as_before, mut grown] = [limit(), limit()];
    for limit in [&mut as_before, &mut grown] {
        (0..4).for_each(|n| assert_eq!(limit.gain(id(n), Former::Owner(last), now), now + seconds(10)));
    }
    grown.resize(8, now + seconds(30));
    (4..8).for_each(|n| {
        assert_eq!(grown.gain(id(n), Former::Others(Duration::ZERO), now + seconds(35)), now + seconds(10))
    });
    for second in 35..120 {
        let at = now + seconds(second);
        assert_eq!(grown.bound(at), as_before.bound(at), "{second} s");
    }
}

#[test]
fn a_share_that_grows_because_partitions_are_gone_does_so_when_everybody_knows() {
    let now = start();
    let mut limit = limit();
    limit.gain(id(0), Former::None, now);
    limit.resize(2, now);
    assert_eq!(limit.burst(now + WINDOW), 25);
    let later = now + limit.hearsay() + WINDOW;
    assert_eq!((limit.burst(later), limit.bound(later)), (50, 600));
}

#[test]
fn rows_sent_one_by_one_make_up_for_a_late_timer_and_never_exceed_the_limit() {
    let began = start();
    let mut limit = Quota::new(Some(1200), 1, TIMEOUT, SESSION);
    limit.gain(id(0), Former::None, began);
    let mut sent: Vec<Duration> = Vec::new();
    let mut now = began;
    while now < began + WINDOW * 5 {
        match limit.take(1, now) {
            Grant::Rows(rows) => {
                assert_eq!(rows, 1);
                sent.push(now - began);
                limit.answered(1, now, now);
            }
            // Every wake-up comes 7 ms late, every hundredth 300 ms.
            Grant::Wait(at) => {
                now = at.max(now) + Duration::from_millis(if sent.len().is_multiple_of(100) { 300 } else { 7 })
            }
            Grant::Blocked => panic!("nothing to wait for"),
        }
    }
    let worst =
        sent.iter().enumerate().map(|(n, at)| sent[n..].iter().take_while(|other| **other < *at + WINDOW).count());
    assert!(worst.max() <= Some(1200), "more than the limit in a window");
    let used = sent.iter().filter(|at| **at >= WINDOW).count();
    assert!(used >= 4 * 1200 * 98 / 100, "{used} of {}", 4 * 1200);
}

#[test]
fn a_share_of_few_rows_a_minute_never_lets_a_request_of_no_rows_go() {
    let mut now = start();
    let mut limit = Quota::new(Some(10), 1, TIMEOUT, SESSION);
    limit.resize(4, now);
    limit.gain(id(0), Former::None, now);
    let mut sent = 0;
    for _ in 0..600 {
        now += Duration::from_secs(1);
        if let Grant::Rows(rows) = limit.take(1, now) {
            assert_eq!(rows, 1);
            limit.answered(1, now, now);
            sent += 1;
        }
    }
    assert!((20..=25).contains(&sent), "{sent} of two and a half a minute, in ten minutes");
}

#[test]
fn a_share_that_is_lost_falls_at_once() {
    let now = start();
    let mut limit = limit();
    limit.gain(id(0), Former::None, now);
    limit.lose(id(0), now);
    assert_eq!(limit.bound(now), 0);
}
