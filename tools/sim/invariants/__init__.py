"""What must hold at every moment of a simulated card, one idea a file.

    running     never two copies, only what was decided, never more than a module holds (I2, I3)
    decided     what the durable disk says: nothing lost, nothing falls, nothing overbooked (I1, I3,
                I7, I8)
    obeyed      what is out of date is refused, and changes nothing (I2)
    order       nothing is started before what it depends on (I2)
    stored      the journal gives back a committed prefix with all that was acknowledged (I4)
    bounds      every queue and table below its bound (I6)
    spread      a module's fault stays with that module (I9), and its death is noticed (I7)
    told        faults are reported, events are not a flood, `ps` and `cnm ls` are true (I10)
    rest        once faults stop everything comes to rest in time; what waits, waits for a reason
                that is true (I1, I7)
    repeat      the same seed gives the same run (I11)

They are judged on models (`hal.mock`: what the slots run, what the disk holds), never on what the
daemon believes, but for `told`, where what it says is the thing judged. All are driven by changes
of the models or by a slow clock, so that a step in which nothing happened costs nothing.
"""
