"""Labelled sets of faces in, in the forms in which they are published: what each says of its images, as Annotations.

`formats` tells them apart and reads them, `step` makes a face row of one image, `shard` the parts of many.
"""
