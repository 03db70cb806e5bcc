-- What runs in the slivers of a slice without a login.
ALTER TABLE slices ADD COLUMN startup TEXT NOT NULL DEFAULT '{}';

-- What an administrative slice sees and may do of the nodes it is on; an ordinary one has no such thing.
ALTER TABLE slices ADD COLUMN admin TEXT NOT NULL DEFAULT '{}';
