"""The clip store: every clip's frames, decoded once from the videos and kept as JPEG.

| file | content |
|---|---|
| `manifest.json` | settings, index, shards and checksums, clips that could not be read; written last |
| `index-….arrow` | one row a clip: its id and segment, what its content is made of, its shard and row |
| `shards/….arrow` | one record batch a clip: positions, JPEG of the centre square and of what lies beside it |
| `parts/….arrow` | shards that are complete but not yet in the index: what an interrupted preparation left |
| `sources.arrow` | the videos as they were seen: path, size, time, fingerprint |

All Arrow files are memory-mapped, so that every process of a node reads the same copy. Files are written under
another name and renamed; a shard's name is a digest of what it holds.
"""
