"""What a teacher has said about training views, by epoch and slot: recorded, kept in files, replayed."""
