//! Stands for [`mirror`](crate) where memory cannot be taken from the program: there is none.

use std::{convert::Infallible, io, ops::Range};

use crate::{process::segment::Segment, veil::Open};

pub(crate) struct Mirror(Infallible);

pub(crate) struct Touch {
    pub(crate) address: usize,
    pub(crate) stores: Option<bool>,
    pub(crate) taken: u64,
}

impl Mirror {
    pub(crate) fn of(_: &Segment) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn page(&self) -> usize {
        match self.0 {}
    }

    pub(crate) fn inner(&self, _: *mut u8) -> *mut u8 {
        match self.0 {}
    }

    pub(crate) fn outer(&self, _: *mut u8) -> *mut u8 {
        match self.0 {}
    }

    pub(crate) fn pages(&self, _: &Range<usize>) -> Option<Range<usize>> {
        match self.0 {}
    }

    pub(crate) fn set(&self, _: &Range<usize>, _: Open) -> io::Result<()> {
        match self.0 {}
    }

    pub(crate) fn open_all(&self) -> io::Result<()> {
        match self.0 {}
    }

    pub(crate) fn note_taking(&self) -> u64 {
        match self.0 {}
    }

    pub(crate) fn has_news(&self) -> bool {
        match self.0 {}
    }

    pub(crate) fn take_touches(&self) -> (Vec<Touch>, bool) {
        match self.0 {}
    }
}

pub(crate) fn most_mappings() -> usize {
    usize::MAX
}

pub(crate) fn in_order(function: impl FnOnce()) {
    function();
}
