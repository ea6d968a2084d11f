-- What an image's configuration says about the commands that run in it, as JSON. It belongs to the name: two names of the same content
-- may have come with different ones. Images of before have none until they are imported again.
ALTER TABLE image_names ADD COLUMN config TEXT NOT NULL
    DEFAULT '{"env":[],"working_dir":null,"user":null,"entrypoint":[],"cmd":[]}';

-- The configuration of the VM's image when the VM was made: the name may go, or mean something else, while the VM stays.
ALTER TABLE vms ADD COLUMN image_config TEXT NOT NULL
    DEFAULT '{"env":[],"working_dir":null,"user":null,"entrypoint":[],"cmd":[]}';
