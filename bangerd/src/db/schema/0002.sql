-- What a registry calls an image: the digest of its manifest, which the import has computed. NULL
-- when it was not an OCI image.
ALTER TABLE image_names ADD COLUMN manifest TEXT;
-- An administrator pulled it: when it is shared, whoever pulls the same manifest gets this content.
-- Of what others have brought, only their own later pulls do.
ALTER TABLE image_names ADD COLUMN by_admin INTEGER NOT NULL DEFAULT 0;
