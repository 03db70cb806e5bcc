-- What runs in the slivers of a slice without a login.
ALTER TABLE slices ADD COLUMN startup TEXT NOT NULL DEFAULT '{}';
