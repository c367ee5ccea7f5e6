"""A build from its command line to the finished dataset: plan, jobs, shards, manifest. Begin with build.py."""
