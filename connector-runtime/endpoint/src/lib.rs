//! A stand-in Wallaroo worker.
