//! What a rank did last, for when its world is late.

use std::{
    panic::Location,
    sync::{Mutex, PoisonError},
    time::Instant,
};

/// The last call a rank made, for when the world is late.
pub(crate) struct LastCall(Mutex<Option<(&'static str, &'static Location<'static>, Instant)>>);

impl LastCall {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(None))
    }

    pub(crate) fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    #[track_caller]
    pub(crate) fn note(&self, call: &'static str) {
        let call = (call, Location::caller(), Instant::now());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(call);
    }

    pub(crate) fn describe(&self) -> String {
        match *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            None => "made no call".into(),
            Some((call, site, at)) => {
                format!("called {call} at {site}, {:.1} s ago", at.elapsed().as_secs_f64())
            }
        }
    }
}
