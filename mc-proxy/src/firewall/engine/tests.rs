mod changes;
mod failures;
mod load;
mod readers;
mod reference;
mod support;
