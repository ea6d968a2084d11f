-- The kernel that VMs of the image get when nobody names one. Whoever registers an image may name it; NULL: the default one, as for
-- all images of before.
ALTER TABLE image_names ADD COLUMN kernel_id TEXT REFERENCES kernels (id);
CREATE INDEX kernels_of_images ON image_names (kernel_id) WHERE kernel_id IS NOT NULL;
