//! One priority level: seats for those who are worked on, a queue for each flow of those who wait.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// A priority level: who may be worked on at once, and who waits.
#[derive(Debug)]
pub(super) struct Level {
    /// How many may wait; 0 refuses at once.
    room: usize,
    total: Mutex<usize>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Below zero when the level has lost seats that are still taken.
    free: isize,
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
            level.pass_on();
        }
    }
}

impl Level {
    pub(super) fn new(seats: usize, room: usize) -> Self {
        let state = State {
            free: isize::try_from(seats).unwrap_or(isize::MAX),
            waiting: 0,
            turns: VecDeque::new(),
            queues: HashMap::new(),
        };
        Self {
            room,
            total: Mutex::new(seats),
            state: Mutex::new(state),
        }
    }

    /// Whether requests may wait here as they may at a level of this room.
    pub(super) fn has_room(&self, room: usize) -> bool {
        self.room == room
    }

    /// Gives the level another number of seats; those that are taken stay taken.
    pub(super) fn resize(self: &Arc<Self>, seats: usize) {
        let mut total = self.total.lock();
        let signed = |n: usize| isize::try_from(n).unwrap_or(isize::MAX);
        let change = signed(seats) - signed(*total);
        *total = seats;
        let mut state = self.state.lock();
        state.free += change;
        let waiting = state.waiting;
        drop(state);
        for _ in 0..waiting.min(usize::try_from(change).unwrap_or(0)) {
            self.state.lock().free -= 1;
            self.pass_on();
        }
    }

    /// A seat at once, or a place in the flow's queue; `Err` when too many wait already.
    pub(super) fn ask(
        self: &Arc<Self>,
        flow: &str,
    ) -> Result<Result<Seat, oneshot::Receiver<Seat>>, ()> {
        let mut state = self.state.lock();
        if state.free > 0 {
            state.free -= 1;
            return Ok(Ok(Seat {
                level: Some(self.clone()),
            }));
        }
        if state.waiting >= self.room {
            return Err(());
        }
        let (sender, receiver) = oneshot::channel();
        state.waiting += 1;
        let queue = state.queues.entry(flow.to_owned()).or_default();
        queue.push_back(sender);
        if queue.len() == 1 {
            state.turns.push_back(flow.to_owned());
        }
        Ok(Err(receiver))
    }

    /// Gives a seat that has become free to the flow whose turn it is.
    fn pass_on(self: &Arc<Self>) {
        loop {
            let next = self.state.lock().next();
            let Some(sender) = next else { return };
            match sender.send(Seat {
                level: Some(self.clone()),
            }) {
                Ok(()) => return,
                // Has given up waiting. The seat must not pass itself on from within its own drop.
                Err(mut seat) => seat.level = None,
            }
        }
    }
}

impl State {
    /// The next one to be served; without one the seat is free.
    fn next(&mut self) -> Option<oneshot::Sender<Seat>> {
        if self.free < 0 {
            self.free += 1;
            return None;
        }
        let Some(flow) = self.turns.pop_front() else {
            self.free += 1;
            return None;
        };
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

    #[tokio::test]
    async fn flows_take_turns_and_a_seat_is_never_lost() {
        let level = Arc::new(Level::new(1, 10));
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
        assert_eq!(level.state.lock().free, 1);
        assert_eq!(level.state.lock().waiting, 0);
    }

    #[tokio::test]
    async fn a_level_that_grows_serves_those_who_wait_and_one_that_shrinks_takes_no_seat_away() {
        let level = Arc::new(Level::new(2, 10));
        let seats = [
            level.ask("a").unwrap().unwrap(),
            level.ask("a").unwrap().unwrap(),
        ];
        let turn = level.ask("b").unwrap().unwrap_err();
        level.resize(3);
        let third = turn.await.unwrap();
        level.resize(1);
        drop(seats);
        assert_eq!(level.state.lock().free, 0);
        drop(third);
        assert_eq!(level.state.lock().free, 1);
    }

    #[test]
    fn a_level_without_room_refuses_at_once() {
        let level = Arc::new(Level::new(1, 0));
        let seat = level.ask("a").unwrap();
        assert!(level.ask("a").is_err());
        drop(seat);
    }
}
