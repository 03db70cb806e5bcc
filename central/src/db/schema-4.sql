-- What an administrative slice sees and may do of the nodes it is on; an ordinary one has no such thing.
ALTER TABLE slices ADD COLUMN admin TEXT NOT NULL DEFAULT '{}';
