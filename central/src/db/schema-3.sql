-- Why a slice is suspended, if it is, and the last reset and restart that was asked for of each sliver.
ALTER TABLE slices ADD COLUMN suspended TEXT;
ALTER TABLE slivers ADD COLUMN reset INTEGER NOT NULL DEFAULT 0;
ALTER TABLE slivers ADD COLUMN restart INTEGER NOT NULL DEFAULT 0;
