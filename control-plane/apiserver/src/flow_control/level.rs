//! One priority level: seats for those who are worked on, a queue for each flow of those who wait.
//!
//! A level that is full borrows seats that others do not use (KEP-1040, "borrowing"): each lends what its object allows,
//! and has its own seats back at once when it wants them. What was lent to others then comes back when their requests
//! end, and until then there are more at work than there are seats.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// How many seats a level has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seats {
    pub own: usize,
    /// Of its own, how many others may use.
    pub lendable: usize,
    /// How many of others' it may use.
    pub borrowable: usize,
}

impl Seats {
    /// What nobody else ever gets.
    fn floor(self) -> usize {
        self.own.saturating_sub(self.lendable)
    }
}

/// All levels' seats together.
#[derive(Debug, Default)]
pub(super) struct Pool {
    total: AtomicIsize,
    /// What is at work, and what is free but not lent out.
    committed: AtomicIsize,
    /// How many wait, at all levels.
    waiting: AtomicUsize,
    levels: Mutex<Vec<Weak<Level>>>,
}

/// A priority level: who may be worked on at once, and who waits.
#[derive(Debug)]
pub(super) struct Level {
    /// How many may wait; 0 refuses at once.
    room: usize,
    pool: Arc<Pool>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    seats: Seats,
    used: usize,
    waiting: usize,
    /// Flows with somebody waiting, in the order of their turns.
    turns: VecDeque<String>,
    queues: HashMap<String, VecDeque<oneshot::Sender<Seat>>>,
}

/// The right to be worked on; goes to the next one when it is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    level: Option<Arc<Level>>,
}

impl Seat {
    /// For who needs none.
    pub(super) fn exempt() -> Self {
        Self { level: None }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(level) = self.level.take() {
            level.free();
        }
    }
}

fn signed(number: usize) -> isize {
    isize::try_from(number).unwrap_or(isize::MAX)
}

impl Pool {
    /// Says which levels there are from now on.
    pub(super) fn set_levels(&self, levels: &[Arc<Level>]) {
        *self.levels.lock() = levels.iter().map(Arc::downgrade).collect();
        self.offer();
    }

    fn change(&self, total: isize, committed: isize) {
        self.total.fetch_add(total, Ordering::SeqCst);
        self.committed.fetch_add(committed, Ordering::SeqCst);
    }

    /// Takes a seat that nobody uses or keeps for itself.
    fn borrow(&self) -> bool {
        let total = self.total.load(Ordering::SeqCst);
        let one_more = |committed| (committed < total).then_some(committed + 1);
        self.committed
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_more)
            .is_ok()
    }

    /// A seat may have become free for any level that has somebody waiting.
    fn offer(&self) {
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        let levels: Vec<_> = self
            .levels
            .lock()
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        for level in levels {
            level.serve();
        }
    }
}

impl Level {
    pub(super) fn new(seats: Seats, room: usize, pool: Arc<Pool>) -> Self {
        pool.change(signed(seats.own), signed(seats.floor()));
        let state = State {
            seats,
            used: 0,
            waiting: 0,
            turns: VecDeque::new(),
            queues: HashMap::new(),
        };
        Self {
            room,
            pool,
            state: Mutex::new(state),
        }
    }

    /// Whether requests may wait here as they may at a level of this room.
    pub(super) fn has_room(&self, room: usize) -> bool {
        self.room == room
    }

    /// Seats of its own, at work, waiting.
    pub(super) fn counts(&self) -> (usize, usize, usize) {
        let state = self.state.lock();
        (state.seats.own, state.used, state.waiting)
    }

    /// Gives the level another number of seats; those that are taken stay taken.
    pub(super) fn resize(self: &Arc<Self>, seats: Seats) {
        let mut state = self.state.lock();
        let (before, own) = (state.committed(), state.seats.own);
        state.seats = seats;
        self.pool.change(
            signed(seats.own) - signed(own),
            signed(state.committed()) - signed(before),
        );
        drop(state);
        self.serve();
    }

    /// A seat at once, or a place in the flow's queue; `Err` when too many wait already.
    pub(super) fn ask(
        self: &Arc<Self>,
        flow: &str,
    ) -> Result<Result<Seat, oneshot::Receiver<Seat>>, ()> {
        let mut state = self.state.lock();
        if state.take(&self.pool) {
            return Ok(Ok(Seat {
                level: Some(self.clone()),
            }));
        }
        if state.waiting >= self.room {
            return Err(());
        }
        let (sender, receiver) = oneshot::channel();
        state.waiting += 1;
        self.pool.waiting.fetch_add(1, Ordering::SeqCst);
        let queue = state.queues.entry(flow.to_owned()).or_default();
        queue.push_back(sender);
        if queue.len() == 1 {
            state.turns.push_back(flow.to_owned());
        }
        Ok(Err(receiver))
    }

    /// A seat has become free: for whose turn it is here, else for whoever may borrow it.
    fn free(self: &Arc<Self>) {
        self.state.lock().give_back(&self.pool);
        self.serve();
        self.pool.offer();
    }

    /// Gives seats to those who wait for as long as there are any.
    fn serve(self: &Arc<Self>) {
        loop {
            let mut state = self.state.lock();
            if state.waiting == 0 || !state.take(&self.pool) {
                return;
            }
            let Some(sender) = state.next() else {
                state.give_back(&self.pool);
                return;
            };
            self.pool.waiting.fetch_sub(1, Ordering::SeqCst);
            drop(state);
            let seat = Seat {
                level: Some(self.clone()),
            };
            if let Err(mut seat) = sender.send(seat) {
                // Has given up waiting. The seat must not pass itself on from within its own drop.
                seat.level = None;
                self.state.lock().give_back(&self.pool);
            }
        }
    }
}

impl Drop for Level {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        let (own, committed) = (signed(state.seats.own), signed(state.committed()));
        self.pool.waiting.fetch_sub(state.waiting, Ordering::SeqCst);
        self.pool.change(-own, -committed);
    }
}

impl State {
    /// What is not there for others.
    fn committed(&self) -> usize {
        self.used.max(self.seats.floor())
    }

    fn take(&mut self, pool: &Pool) -> bool {
        let beyond_floor = self.used >= self.seats.floor();
        let had = if self.used < self.seats.own {
            if beyond_floor {
                pool.change(0, 1);
            }
            true
        } else {
            let limit = self.seats.own.saturating_add(self.seats.borrowable);
            self.used < limit && pool.borrow()
        };
        self.used += usize::from(had);
        had
    }

    fn give_back(&mut self, pool: &Pool) {
        self.used -= 1;
        if self.used >= self.seats.floor() {
            pool.change(0, -1);
        }
    }

    /// The next one to be served.
    fn next(&mut self) -> Option<oneshot::Sender<Seat>> {
        let flow = self.turns.pop_front()?;
        let queue = self.queues.get_mut(&flow)?;
        let sender = queue.pop_front();
        if queue.is_empty() {
            self.queues.remove(&flow);
        } else {
            self.turns.push_back(flow);
        }
        self.waiting -= 1;
        sender
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seats(own: usize, lendable: usize, borrowable: usize) -> Seats {
        Seats {
            own,
            lendable,
            borrowable,
        }
    }

    fn level(own: usize, room: usize) -> Arc<Level> {
        Arc::new(Level::new(seats(own, 0, 0), room, Arc::default()))
    }

    #[tokio::test]
    async fn flows_take_turns_and_a_seat_is_never_lost() {
        let level = level(1, 10);
        let first = level.ask("a").unwrap().unwrap();
        let mut order = Vec::new();
        for flow in ["flood", "flood", "flood", "quiet"] {
            order.push((flow, level.ask(flow).unwrap().unwrap_err()));
        }
        // One of the flood gives up; its turn goes to somebody who still waits.
        order.remove(1);
        drop(first);
        let (_, turn) = order.remove(0);
        let seat = turn.await.unwrap();
        drop(seat);
        let quiet = order.pop().unwrap();
        assert_eq!(quiet.0, "quiet");
        let seat = quiet.1.await.unwrap();
        drop(seat);
        drop(order.remove(0).1.await.unwrap());
        assert_eq!(level.counts(), (1, 0, 0));
    }

    #[tokio::test]
    async fn a_level_that_grows_serves_those_who_wait_and_one_that_shrinks_takes_no_seat_away() {
        let level = level(2, 10);
        let taken = [
            level.ask("a").unwrap().unwrap(),
            level.ask("a").unwrap().unwrap(),
        ];
        let turn = level.ask("b").unwrap().unwrap_err();
        level.resize(seats(3, 0, 0));
        let third = turn.await.unwrap();
        level.resize(seats(1, 0, 0));
        drop(taken);
        assert!(level.ask("c").unwrap().is_err());
        drop(third);
        assert_eq!(level.counts().0, 1);
    }

    #[test]
    fn a_level_without_room_refuses_at_once() {
        let level = level(1, 0);
        let seat = level.ask("a").unwrap();
        assert!(level.ask("a").is_err());
        drop(seat);
    }

    #[tokio::test]
    async fn idle_seats_are_lent_and_their_owner_has_them_back_at_once() {
        let pool = Arc::new(Pool::default());
        let lender = Arc::new(Level::new(seats(4, 2, 0), 10, pool.clone()));
        let busy = Arc::new(Level::new(seats(1, 0, 8), 10, pool.clone()));
        pool.set_levels(&[lender.clone(), busy.clone()]);
        let mut at_work: Vec<_> = (0..3).map(|_| busy.ask("a").unwrap().unwrap()).collect();
        // Two of the lender's four are not for others.
        let turn = busy.ask("a").unwrap().unwrap_err();
        let own: Vec<_> = (0..4).map(|_| lender.ask("b").unwrap().unwrap()).collect();
        assert!(lender.ask("b").unwrap().is_err());
        // What the lender took back is missing until it is free again.
        at_work.pop();
        assert_eq!(busy.counts(), (1, 2, 1));
        drop(own);
        drop(turn.await.unwrap());
        drop(at_work);
        assert_eq!(pool.committed.load(Ordering::SeqCst), 3);
    }

    #[test]
    fn borrowing_has_its_limit() {
        let pool = Arc::new(Pool::default());
        let lender = Level::new(seats(9, 9, 0), 0, pool.clone());
        let busy = Arc::new(Level::new(seats(1, 0, 2), 0, pool.clone()));
        let at_work: Vec<_> = (0..3).map(|_| busy.ask("a").unwrap()).collect();
        assert!(busy.ask("a").is_err());
        drop((at_work, lender));
    }
}
