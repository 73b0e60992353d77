//! The placement driver as pure logic
