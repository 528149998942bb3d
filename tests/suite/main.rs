//! Integration tests.

mod data;
