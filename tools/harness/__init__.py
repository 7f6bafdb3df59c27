"""What tour, chaos and bench share: a real supervisor under control, forked processes, facts about the machine."""
