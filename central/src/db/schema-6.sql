-- Another number with each change of a slice, so that two who change it at once do not undo each other's; and for each sliver, so that it is told
-- from one that a node still has of a slice that had its name before.
ALTER TABLE slices ADD COLUMN version INTEGER NOT NULL DEFAULT 1;
ALTER TABLE slivers ADD COLUMN birth INTEGER NOT NULL DEFAULT 0;
